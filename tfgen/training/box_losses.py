"""What detectors minimise: see `boxes` for their targets and outputs.

A cell shows the object whose centre is nearest to its own, if it is less than a cell away down and
across: four cells show an object, be it small or large. Cells tell each class apart from all else
by a logit (cross-entropy), and where their object is by the generalised intersection over union
(Rezatofighi et al. 2019). Both are sums divided by the number of cells that show an object.
"""

from __future__ import annotations

from tfgen.nets.keras_compat import tf
from tfgen.training.boxes import LARGEST, PLACE

_REACH, _FAR = 1.0, 2.0  # cells


def loss(targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Of objects [batch, rows, 5] and outputs [batch, rows, columns, classes + 4]."""
    shown, objects = assigned(targets, outputs)
    logits, where = outputs[..., :-PLACE], outputs[..., -PLACE:]
    kinds = tf.one_hot(tf.cast(objects[..., 0], tf.int32), logits.shape[-1]) * shown[..., None]
    told = _places(where)
    return _summed(kinds, logits, objects[..., 1:], told, shown)


def distance(teacher: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Of a teacher's outputs: the same, each cell as sure as the teacher is that it shows any."""
    kinds = tf.sigmoid(teacher[..., :-PLACE])
    places, told = _places(teacher[..., -PLACE:]), _places(outputs[..., -PLACE:])
    return _summed(kinds, outputs[..., :-PLACE], places, told, tf.reduce_max(kinds, axis=-1))


def assigned(targets: tf.Tensor, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether cells show an object, 0 or 1 [batch, rows, columns], and which [.., FIELDS]."""
    away = []
    for axis, count in enumerate(outputs.shape[1:3]):
        cells = tf.range(count, dtype=tf.float32) + 0.5
        # [batch, objects, cells]
        away.append(tf.abs(cells - count * targets[..., 1 + axis, None]))
    far = tf.maximum(away[0][..., None], away[1][:, :, None])
    far = tf.where((targets[..., 0] >= 0)[..., None, None], far, _FAR)
    objects = tf.gather(targets, tf.argmin(far, axis=1), batch_dims=1)
    return tf.cast(tf.reduce_min(far, axis=1) < _REACH, tf.float32), objects


def _summed(
    kinds: tf.Tensor, logits: tf.Tensor, places: tf.Tensor, told: tf.Tensor, shown: tf.Tensor
) -> tf.Tensor:
    """Both parts; each cell counts as much for its place as `shown` says."""
    apart = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(kinds, logits))
    beside = tf.reduce_sum((1.0 - overlap(places, told)) * shown)
    return (apart + beside) / tf.maximum(tf.reduce_sum(shown), 1.0)


def _places(where: tf.Tensor) -> tf.Tensor:
    """A cell's outputs as (centre y, centre x, height, width) in shares of the image."""
    rows, columns = where.shape[1:3]
    grid = tf.constant([rows, columns], tf.float32)
    y, x = tf.range(rows, dtype=tf.float32), tf.range(columns, dtype=tf.float32)
    cells = tf.stack(tf.meshgrid(y, x, indexing="ij"), axis=-1) + 0.5
    size = tf.exp(tf.clip_by_value(where[..., 2:], -LARGEST, LARGEST))
    return tf.concat([(cells + where[..., :2]) / grid, size / grid], axis=-1)


def overlap(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Generalised intersection over union of places [.., 4], in -1..1."""
    ends = [(p[..., :2] - p[..., 2:] / 2, p[..., :2] + p[..., 2:] / 2) for p in (one, other)]
    (low, high), (other_low, other_high) = ends
    inner = tf.minimum(high, other_high) - tf.maximum(low, other_low)
    shared = tf.reduce_prod(tf.maximum(inner, 0.0), axis=-1)
    areas = tf.reduce_prod(one[..., 2:], axis=-1) + tf.reduce_prod(other[..., 2:], axis=-1)
    around = tf.maximum(high, other_high) - tf.minimum(low, other_low)
    hull = tf.maximum(tf.reduce_prod(around, axis=-1), 1e-9)
    union = tf.maximum(areas - shared, 1e-9)
    return shared / union - (hull - union) / hull
