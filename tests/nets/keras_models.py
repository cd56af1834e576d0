"""Models of either Keras for tests, by a process of its own: keras_models VERSION FOLDER."""

import importlib
import pathlib
import sys
from typing import Any

import numpy as np

SHAPE = (16, 16, 3)


def residual(keras: Any) -> Any:
    """Basic blocks of ResNet, a shortcut, biases beside normalisation, a softmax."""
    k = keras.layers
    inputs = x = keras.Input(SHAPE)
    x = k.Rescaling(2.0, offset=-1.0)(x)
    x = k.Conv2D(8, 3, padding="same")(x)
    x = k.BatchNormalization()(x)
    x = k.ReLU()(x)
    for stride, width in ((1, 8), (2, 16)):
        y = k.Conv2D(width, 3, stride, use_bias=False)(k.ZeroPadding2D(1)(x))  # as PyTorch pads
        y = k.BatchNormalization(epsilon=1e-5)(y)
        y = k.Activation("relu")(y)
        y = k.Conv2D(width, 3, padding="same", use_bias=False)(y)
        y = k.BatchNormalization(scale=False)(y)
        short = x if stride == 1 else k.Conv2D(width, 1, stride)(x)
        x = k.Activation("relu")(k.Add()([y, short]))
    x = k.Dropout(0.2)(k.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, k.Dense(10, activation="softmax")(x))


def depthwise(keras: Any) -> Any:
    """MobileNet's way: zeros, strides, ReLU6, squeeze-and-excitation, a nested model."""
    k = keras.layers
    stem = keras.Sequential(
        [keras.Input(SHAPE), k.ZeroPadding2D(((0, 1), (0, 1))), k.Conv2D(8, 3, 2, use_bias=False)],
        name="stem",
    )
    inputs = keras.Input(SHAPE)
    x = k.ReLU(6.0)(k.BatchNormalization()(stem(inputs)))
    y = k.DepthwiseConv2D(5, padding="same", use_bias=False)(x)
    y = k.ReLU(6.0)(k.BatchNormalization(center=False)(y))
    gate = k.Reshape((1, 1, 8))(k.GlobalAveragePooling2D()(y))
    gate = k.Dense(4, activation="relu")(gate)
    gate = k.Conv2D(8, 1, activation="sigmoid")(gate)
    x = k.Add()([x, k.Multiply()([y, gate])])
    x = k.SeparableConv2D(16, 3, padding="same", activation="relu")(x)
    x = k.Activation("swish")(k.Conv2D(16, 3, 2, padding="same", groups=16)(x))
    x = k.Dense(10)(k.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(inputs, k.Flatten()(x))


def dense(keras: Any) -> Any:
    """DenseNet's way: normalisation before convolutions, everything joined, averages."""
    k = keras.layers
    inputs = keras.Input(SHAPE)
    x = k.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    for _ in range(2):
        y = k.Conv2D(16, 1, use_bias=False)(k.ReLU()(k.BatchNormalization()(x)))
        y = k.Conv2D(4, 3, padding="same", use_bias=False)(k.ReLU()(k.BatchNormalization()(y)))
        x = k.Concatenate()([x, y])
    x = k.AveragePooling2D(2)(k.Conv2D(8, 1)(k.ReLU()(k.BatchNormalization()(x))))
    x = k.GlobalAveragePooling2D()(k.ReLU()(k.BatchNormalization()(x)))
    return keras.Model(inputs, k.Dense(10)(x))


def imagenet(keras: Any) -> Any:
    """How ResNet, DenseNet and EfficientNet begin: normalised pixels, zeros before a pool."""
    k = keras.layers
    inputs = keras.Input(SHAPE)
    x = k.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.2, 0.1, 0.3])(k.Rescaling(2.0)(inputs))
    x = k.Normalization()(x)
    x = k.Conv2D(8, 7, 2, use_bias=False)(k.ZeroPadding2D(3)(x))
    x = k.MaxPooling2D(3, 2)(k.ZeroPadding2D(1)(x))  # of 8 pixels, negative ones among them
    x = k.ReLU()(k.BatchNormalization()(x))
    around = k.ZeroPadding2D(1)(k.Conv2D(12, 1)(x))
    pools = k.AveragePooling2D(3, 1)(around), k.MaxPooling2D(3, 1)(around)  # of one pad
    x = k.Conv2D(12, 3, padding="same")(k.ZeroPadding2D(1)(k.Concatenate()(pools)))
    x = k.ReLU()(k.BatchNormalization()(x))
    x = k.Conv2D(8, 3, 3)(k.ZeroPadding2D(2)(x))  # windows begin two before: no file has such
    x = k.ZeroPadding2D(1)(k.ReLU()(k.BatchNormalization()(x)))
    x = k.Normalization(axis=None, invert=True, mean=0.5, variance=2.0)(k.Flatten()(x))
    return keras.Model(inputs, k.Dense(10)(x))


def branches(keras: Any) -> Any:
    """Inception's way: branches side by side, of which the input is one."""
    k = keras.layers
    inputs = keras.Input(SHAPE)
    x = k.Conv2D(8, 3, 2, padding="same", activation="relu")(inputs)
    one = k.Conv2D(4, 1, activation="relu")(x)
    two = k.Conv2D(4, 5, padding="same", activation="relu")(one)
    three = k.Conv2D(4, 1, activation="relu")(k.MaxPooling2D(3, 1, padding="same")(x))
    four = k.Conv2D(4, 1, activation="relu")(k.AveragePooling2D(3, 1, padding="same")(x))
    x = k.ReLU()(k.Concatenate()([one, two, three, four, x]))
    x = k.AveragePooling2D(3, 2, padding="same")(x)  # 4x4 of 8x8: the last see two of three
    x = k.Flatten()(k.AveragePooling2D(4)(x))
    return keras.Model(inputs, k.Dense(10)(x))


def plain(keras: Any) -> Any:
    """VGG's way, in a row."""
    k = keras.layers
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            k.Conv2D(8, 3, activation="relu"),  # 14x14 are left
            k.MaxPooling2D(),  # 7x7
            k.Conv2D(12, 3, padding="same"),
            k.Dropout(0.1),
            k.BatchNormalization(),
            k.Activation("relu"),
            k.MaxPooling2D(2),  # 3x3: the last row and column are left out
            k.Flatten(),
            k.Dense(16, activation="relu"),
            k.Dense(10),
            k.Softmax(),
        ]
    )


def segmenting(keras: Any) -> Any:
    """U-Net's way: down, up again with what was there before, a class for each pixel."""
    k = keras.layers
    inputs = keras.Input(SHAPE)
    one = k.Conv2D(8, 3, 2, padding="same", activation="relu")(inputs)
    two = k.Conv2D(16, 3, 2, padding="same", use_bias=False)(one)
    two = k.ReLU()(k.BatchNormalization()(two))
    x = k.Concatenate()([k.UpSampling2D()(two), one])
    x = k.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = k.UpSampling2D((2, 2), interpolation="nearest")(x)
    return keras.Model(inputs, k.Conv2D(10, 1, activation="softmax")(x))


def everyday(keras: Any) -> Any:
    """What people write: sums by +, names of their own, images moved, vectors normalised."""
    k, three = keras.layers, keras.__version__.startswith("3")
    pixels = keras.Input(SHAPE, name="pixels")
    x = k.Conv2D(8, 3, padding="same", name="input")(k.RandomFlip("horizontal")(pixels))
    short = k.Conv2D(8, 1, name="größe" if three else "size")(pixels)
    x = k.ReLU()(x + short if three else k.Add()([x, short]))
    gate = k.Dense(4, activation="relu")(k.GlobalAveragePooling2D()(x))
    gate = k.Reshape((1, 1, 8))(k.Dense(8, activation="sigmoid")(gate))
    x = k.Multiply()([x, gate])
    joined = k.Concatenate()([k.Conv2D(4, 3, padding="same")(x), k.Conv2D(4, 1)(x)])
    last = k.Conv2D(8, 5, padding="same", name="_last" if three else "last")
    x = k.Concatenate()([joined, last(x)])
    x = k.BatchNormalization()(k.GlobalAveragePooling2D()(x))
    x = k.BatchNormalization()(k.Dense(12, activation="relu")(x))
    return keras.Model(pixels, k.Dense(10)(k.Dropout(0.1)(x)))


def arithmetic(keras: Any) -> Any:
    """Signs between layers and numbers: hard-swish and its gate as MobileNetV3 writes them."""
    k = keras.layers
    inputs = keras.Input(SHAPE)
    x = (inputs / 0.5 - 1) * 0.9
    x = k.BatchNormalization()(k.Conv2D(8, 3, padding="same", use_bias=False)(x))
    x = x * (k.ReLU(6.0)(x + 3.0) * (1.0 / 6.0))
    x = k.DepthwiseConv2D(3, padding="same")(2.0 * x) / 3
    gate = k.Conv2D(8, 1)(k.GlobalAveragePooling2D(keepdims=True)(x))
    gate = k.ReLU(6.0)(3.0 + gate) * (1.0 / 6.0)
    x = 1 - x * gate
    x = x + k.Conv2D(8, 1)(x)
    return keras.Model(inputs, k.Dense(10)(k.GlobalAveragePooling2D()(x)) - 0.5)


def scaled(keras: Any) -> Any:
    """Images of a single channel between layers, and a vector that is scaled and normalised."""
    k = keras.layers
    inputs = keras.Input(SHAPE)
    x = k.Conv2D(1, 3, padding="same", activation="relu")(inputs)
    x = k.SeparableConv2D(12, 3, padding="same", activation="relu")(x)
    x = k.Dense(1, activation="relu")(x)
    x = k.Dense(9, activation="relu")(x)
    x = k.Dense(16)(k.Identity()(k.GlobalMaxPooling2D()(x)))
    x = k.BatchNormalization()(k.Rescaling(0.5, offset=1.0)(x))
    return keras.Model(inputs, k.Dense(10)(x))


def habits(keras: Any) -> Any:
    """One ReLU and one Dropout for all, layers as activations, flattened branches, a linear end."""
    k = keras.layers
    relu, drop = k.ReLU(), k.Dropout(0.1)
    inputs = keras.Input(SHAPE)
    x = k.AveragePooling2D(3, 1, padding="same")(k.ZeroPadding2D(1)(inputs))  # zeros count once
    x = drop(relu(k.Conv2D(8, 3, 2, padding="same")(x)))  # 9x9
    y = relu(k.Conv2D(8, 3, padding="same")(x))
    y = k.Conv2D(12, 3, padding="same", activation=k.ReLU(6.0), name="examples")(drop(y))
    two = keras.Input((9, 9, 8)), keras.Input((9, 9, 12))
    joined = keras.Model(two, k.Concatenate()([k.MaxPooling2D(2, padding="same")(i) for i in two]))
    vectors = [k.Flatten()(k.MaxPooling2D(3)(y)), k.Flatten()(x), k.Flatten()(joined([x, y]))]
    x = k.Dense(10, activation="softmax")(drop(k.Concatenate()(vectors)))
    return keras.Model(inputs, k.Activation("linear", dtype="float32")(x))


_ALL = (
    *(residual, everyday, depthwise, dense, imagenet, branches, plain, segmenting, scaled),
    *(arithmetic, habits),
)
MODELS = {f.__name__: f for f in _ALL}


def images() -> np.ndarray:
    """What the models are asked [images, 16, 16, 3]."""
    return np.random.default_rng(1).uniform(0.0, 1.0, (8, *SHAPE)).astype(np.float32)


def main(version: str, folder: str) -> None:
    """Writes NAME.keras, NAME.h5 and NAME.npy, what the model says of `images`."""
    keras = importlib.import_module({"2": "tf_keras", "3": "keras"}[version])
    random = np.random.default_rng(int(version))
    for name, make in MODELS.items():
        model = make(keras)
        # Moments and scales that are not all alike; variances are positive.
        model.set_weights(
            [w + random.uniform(0.05, 0.3, w.shape).astype(w.dtype) for w in model.get_weights()]
        )
        for layer in model.layers:
            if hasattr(layer, "finalize_state"):  # a normalisation reads its weights once
                layer.finalize_state()
        model.compile(optimizer="adam", loss="mse")
        where = pathlib.Path(folder, name)
        model.save(f"{where}.keras")
        model.save(f"{where}.h5")
        np.save(f"{where}.npy", np.asarray(model(images(), training=False)))


if __name__ == "__main__":
    main(*sys.argv[1:])
