"""Networks that generative synthesis starts from; each function returns a Keras model."""

from __future__ import annotations

from tfgen.nets.keras_compat import keras


def resnet20() -> keras.Model:
    """ResNet-20 of He et al. (2016, section 4.2), 41 M MACs at 32x32.

    Shortcuts where the size changes are 1x1 convolutions instead of padded zeros.
    """
    return _resnet("resnet20", 3)


def resnet8() -> keras.Model:
    """ResNet8 of MLPerf Tiny (Banbury et al. 2021), 12,501,632 MACs at 32x32."""
    return _resnet("resnet8", 1)


def mobilenet() -> keras.Model:
    """MobileNet 1.0 (Howard et al. 2017) for 32x32 pixels: what the paper compares with."""
    return keras.applications.MobileNet(
        (32, 32, 3), weights=None, classes=10, classifier_activation=None
    )


def segmenter() -> keras.Model:
    """An encoder and a decoder with sums across, 114 M MACs at 160x120: 11 classes of CamVid."""
    k = keras.layers
    inputs = keras.Input((120, 160, 3))
    half = _convolution(inputs, 16, stride=2)
    quarter = _convolution(_convolution(half, 32, stride=2), 32)
    x = _convolution(_convolution(_convolution(quarter, 64, stride=2), 64), 64)
    for width, across in ((32, quarter), (16, half)):
        x = _convolution(k.UpSampling2D()(x), width)
        x = _convolution(k.Add()([x, across]), width)
    return keras.Model(inputs, k.UpSampling2D()(k.Conv2D(11, 1)(x)), name="segmenter")


def detector() -> keras.Model:
    """A residual network with cells of 8x8 pixels, 190 M MACs at 160x120: 3 classes of BCCD.

    Cells of this size are those of 6 of BCCD's 2,804 training objects too many that share one.
    """
    k = keras.layers
    inputs = x = keras.Input((120, 160, 3))
    x = _convolution(x, 16, stride=2)
    for width, stride, blocks in ((32, 2, 1), (64, 2, 2), (128, 1, 1)):
        x = _convolution(x, width, stride=stride)
        for _ in range(blocks):
            y = _convolution(_convolution(x, width), width, relu=False)
            x = k.ReLU()(k.Add()([x, y]))
    return keras.Model(inputs, k.Conv2D(3 + 4, 1)(x), name="detector")


def _resnet(name: str, blocks: int) -> keras.Model:
    """A residual network for CIFAR-10, of three stages of so many blocks."""
    k = keras.layers
    inputs = x = keras.Input((32, 32, 3))
    x = _convolution(x, 16)
    for width in (16, 32, 64):
        for block in range(blocks):
            stride = 2 if width > 16 and not block else 1
            y = _convolution(_convolution(x, width, stride=stride), width, relu=False)
            if stride > 1:
                x = _convolution(x, width, kernel=1, stride=stride, relu=False)
            x = k.ReLU()(k.Add()([x, y]))
    x = k.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, k.Dense(10)(x), name=name)


def _convolution(
    x: keras.KerasTensor, width: int, *, kernel: int = 3, stride: int = 1, relu: bool = True
) -> keras.KerasTensor:
    """Convolution, batch normalisation and ReLU."""
    k = keras.layers
    x = k.Conv2D(
        width,
        kernel,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    x = k.BatchNormalization()(x)
    return k.ReLU()(x) if relu else x
