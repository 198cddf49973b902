"""Scores the classical way beside the shipped weights, on the same images.

Otsu's threshold on the same gray image, then a watershed on the distance to the background: what
needs no training. Not collected by pytest.

    python tests/benchmark.py --data data/stage1_train.zip
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.segmentation import watershed

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from anywhere, as the scripts are

import Evaluate_model
import Main
import Model
import Predict_masks
import Preprocessed_data

PEAK_DISTANCE = 7  # pixels; half the width of a common nucleus, so that each has one peak


def segment_classically(gray: np.ndarray) -> np.ndarray:
    """Otsu + watershed; (H, W) float32 in [0, 1] -> labels (H, W) int32."""
    smooth = gaussian(gray, 1)
    bright = smooth > threshold_otsu(smooth) if np.ptp(smooth) else np.zeros(gray.shape, bool)
    # Nuclei are the smaller part of an image; on a bright background they are the dark one.
    mask = ndimage.binary_fill_holes(~bright if bright.mean() > 0.5 else bright)
    distance = gaussian(ndimage.distance_transform_edt(mask), 1)
    peaks = peak_local_max(distance, min_distance=PEAK_DISTANCE, labels=ndimage.label(mask)[0])
    seeds = np.zeros(gray.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=mask)
    return Predict_masks.number_in_order(Predict_masks.keep_large(labels, Predict_masks.MIN_AREA))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=Preprocessed_data.DATA, help="default %(default)s")
    parser.add_argument("--weights", default=Predict_masks.WEIGHTS, help="default %(default)s")
    args = parser.parse_args()
    samples = Main.choose_samples(args.data, args.weights)
    with tempfile.TemporaryDirectory() as folder:
        otsu, unet = Path(folder, "otsu"), Path(folder, "unet")
        Predict_masks.predict_samples(samples, Model.load_unet(args.weights), unet)
        Predict_masks.make_folders(otsu)
        for sample in samples:
            image = Preprocessed_data.read_image(sample.image)
            labels = segment_classically(Preprocessed_data.to_grayscale(image))
            Predict_masks.write_prediction(otsu, sample.id, image, labels)
        ids = [sample.id for sample in samples]
        for name, out in (("Otsu + watershed", otsu), (f"U-Net, {args.weights}", unet)):
            rows, _ = Evaluate_model.evaluate(args.data, out, ids)
            print(f"\n{name}\n{Evaluate_model.format_table(rows)}")
    return 0


if __name__ == "__main__":
    Preprocessed_data.run_script(main)
