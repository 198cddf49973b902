"""Scores two baselines beside the shipped weights, on the same images. Not collected by pytest.

Otsu + watershed: Otsu's threshold on the same gray image, then a watershed on the distance to the
background; it needs no training. Plain recipe (--plain; trains 30 epochs, minutes): what this kind
of project usually does: luminance and masks resized to 128×128, no augmentation, Adam, binary
cross-entropy, a U-Net of 16 to 256 filters, masks resized back.

    python tests/benchmark.py --data data/stage1_train.zip
    python tests/benchmark.py --data data/stage1_train.zip --plain
"""

import argparse
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers
from scipy import ndimage
from skimage.color import rgb2gray
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.segmentation import watershed
from skimage.transform import resize

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from anywhere, as the scripts are

import Evaluate_model
import Main
import Model
import Predict_masks
import Preprocessed_data

PLAIN_SIZE = 128  # pixels
PEAK_DISTANCE = 7  # pixels; half the width of a common nucleus, so that each has one peak


def segment_classically(image: np.ndarray) -> np.ndarray:
    """Otsu + watershed; (H, W) or (H, W, 3) as read -> labels (H, W) int32."""
    smooth = gaussian(Preprocessed_data.to_grayscale(image), 1)
    # Of a constant image nothing is above the threshold.
    mask = ndimage.binary_fill_holes(smooth > threshold_otsu(smooth))
    distance = gaussian(ndimage.distance_transform_edt(mask), 1)
    peaks = peak_local_max(distance, min_distance=PEAK_DISTANCE, labels=ndimage.label(mask)[0])
    seeds = np.zeros(smooth.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=mask)
    return Predict_masks.number_in_order(Predict_masks.keep_large(labels, Predict_masks.MIN_AREA))


def build_plain_unet() -> keras.Model:
    """Two 3×3 convolutions a level, 16 to 256 filters, no normalisation, one sigmoid."""

    def convolve(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        return x

    x = gray = keras.Input((PLAIN_SIZE, PLAIN_SIZE, 1))
    skips = []
    for filters in (16, 32, 64, 128):
        skips.append(convolve(x, filters))
        x = layers.MaxPooling2D()(skips[-1])
    x = convolve(x, 256)
    for filters in (128, 64, 32, 16):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = convolve(layers.Concatenate()([skips.pop(), x]), filters)
    return keras.Model(gray, layers.Conv2D(1, 1, activation="sigmoid")(x))


def train_plain(samples: list[Preprocessed_data.Sample]) -> keras.Model:
    """Trains the plain recipe on these images: 30 epochs, batches of 16, Adam at 0.001."""
    keras.utils.set_random_seed(Preprocessed_data.SEED)
    images, labels = Preprocessed_data.load_samples(samples)
    gray = np.stack([shrink(image) for image in images])
    size = PLAIN_SIZE, PLAIN_SIZE
    masks = np.stack([resize((x > 0).astype(np.float32), size) > 0.5 for x in labels])
    model = build_plain_unet()
    model.compile("adam", "binary_crossentropy")
    model.fit(gray[..., None], masks[..., None].astype(np.float32), 16, epochs=30, verbose=2)
    return model


def shrink(image: np.ndarray) -> np.ndarray:
    """Luminance at 128×128, float in [0, 1] of the full scale."""
    luminance = rgb2gray(image) if image.ndim == 3 else image / Preprocessed_data.full_scale(image)
    return resize(luminance, (PLAIN_SIZE, PLAIN_SIZE))


def segment_plainly(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Predicts at 128×128, resizes back; connected pieces of the mask are the nuclei."""
    answer = model.predict_on_batch(shrink(image)[None, ..., None])[0, ..., 0]
    probability = resize(answer, image.shape[:2])
    return ndimage.label(probability > 0.5)[0].astype(np.int32)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=Preprocessed_data.DATA, help="default %(default)s")
    parser.add_argument("--weights", default=Predict_masks.WEIGHTS, help="default %(default)s")
    parser.add_argument("--plain", action="store_true", help="train and score the plain recipe too")
    args = parser.parse_args()
    everything = Preprocessed_data.open_source(args.data)
    samples = Main.choose_samples(args.data, args.weights)
    methods = {"Otsu + watershed": segment_classically}
    if args.plain:
        scored = {sample.id for sample in samples}
        rest = [sample for sample in everything if sample.id not in scored]
        if not rest:
            raise ValueError(f"{args.data}: no image is left to train the plain recipe on")
        plain = train_plain(rest)
        methods["plain recipe"] = lambda image: segment_plainly(plain, image)
    with tempfile.TemporaryDirectory() as folder:
        for name, segment in methods.items():
            Predict_masks.make_folders(Path(folder, name))
            for sample in samples:
                image = Preprocessed_data.read_image(sample.image)
                Predict_masks.write_prediction(Path(folder, name), sample.id, image, segment(image))
        unet = Model.load_unet(args.weights)
        Predict_masks.predict_samples(samples, unet, Path(folder, "U-Net"))
        for name in (*methods, "U-Net"):
            ids = [sample.id for sample in samples]
            rows, _ = Evaluate_model.evaluate(args.data, Path(folder, name), ids)
            print(f"\n{name}\n{Evaluate_model.format_table(rows)}")
    return 0


if __name__ == "__main__":
    Preprocessed_data.run_script(main)
