"""A flag that is accepted and has no effect."""

def _ignored_string_flag_impl(_ctx):
    return []

ignored_string_flag = rule(
    implementation = _ignored_string_flag_impl,
    build_setting = config.string(flag = True),
)
