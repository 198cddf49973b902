"""Finds the images of sources.

In:  folders of images with their sub-folders, image files, wildcards, .txt lists of paths, or the layout of the
     2018 Data Science Bowl (ID/images/ID.png, ID/masks/*.png), as a folder or as a .zip, which is read in place.
     The truth lies in one of the layouts of `data.layouts`, too.
Out: a list of `Sample`: ids with their files. No pixel is read here.
"""

import codecs
import functools
import glob
import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from data.files import File, UserError
from data.layouts import (
    LEFT_LINKS,
    LEFT_MASKS,
    LEFT_RESULTS,
    LEFT_UNREAD,
    LEFT_WITHOUT_TRUTH,
    OUTLINE_ENDINGS,
    PLAIN_ENDINGS,
    RESULT_PICTURES,
    SOURCE_RECORD,
    TRUTH_SUFFIXES,
    LeftOut,
    PathParts,
    Sample,
    add_predictions,
    is_beside_images,
    is_in_results,
    is_result,
    lower_parts,
    nnunet_name,
    pair_masks,
    pair_truths,
    settle_truths,
    split_truth_files,
)
from data.listings import is_hidden, list_folder, list_zip
from data.microscopes import MICROSCOPE_ENDINGS, check_package, is_microscope_file, missing_package

IMAGE_ENDINGS = PLAIN_ENDINGS + MICROSCOPE_ENDINGS
LEFT_PACKED = ("file that is not read in an archive", "files that are not read in an archive")
SHOWN_DETAILS = 5  # endings or names in the line on what is left out
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NO_LETTERS = ("Cc", "Cs")  # categories of Unicode: control characters, and bytes that are no text


def find_samples(*sources: str | Path, with_truth: bool = False) -> list[Sample]:
    """Finds the images of one source or several without reading them.

    The id of DAY/NAME.png is DAY__NAME; that of ID/images/ID.png is ID. Where two sources share an id, the name of the
    source's folder goes before all ids of both. Files that are left out are counted on stderr.

    Args:
        sources: folder of images, Kaggle folder or .zip, image file, wildcard such as "data/*.tif", or a .txt with
            one such path a line, relative to the folder of the .txt.
        with_truth: whether truth is wanted; then truth that belongs to an image is not counted as left out. A folder
            that Predict_masks.py wrote holds truth for the images of the other sources, and no images of its own.
            Test images of nnU-Net without truth are left out where other images have truth.

    Returns:
        At least one sample, sorted by id.

    Raises:
        UserError: nothing is there, no image is in it, two images share one id, or the archive is not safe to read;
            with truth also other images without it beside some that have it, truth without an image, and an image
            with truth in several places.
    """
    left_out = defaultdict(list)
    paths = _expand_sources(sources)
    groups = defaultdict(list)  # folder that tells the sources apart -> samples
    files = set()
    for path, siblings in _group_paths(paths):
        samples = _find_in_source(path, siblings, len(paths) == 1, left_out)
        # A source may lie in another one.
        samples = [sample for sample in samples if os.path.abspath(str(sample.image)) not in files]
        files |= {os.path.abspath(str(sample.image)) for sample in samples}
        groups[_folder_of(path)] += samples
    samples = sorted(_name_sources(groups), key=lambda sample: sample.id)
    if with_truth:
        samples = add_predictions(samples, paths)
        samples = settle_truths(samples, left_out, paths)
    names = ", ".join(map(str, sources))
    left_out_line = _format_left_out(left_out)
    if not samples:
        endings = ", ".join(PLAIN_ENDINGS)
        raise UserError(f"{names}: no images in it ({endings}); {left_out_line or 'it is empty'}")
    check_unique_ids(samples)
    if left_out_line:
        say_once(left_out_line, names)
    return samples


def source_name(source: str | Path) -> str:
    """The name of a folder, or that of a file without its ending."""
    path = Path(os.path.abspath(source))
    is_file = path.suffix.lower() in (*IMAGE_ENDINGS, ".zip", ".txt") and not path.is_dir()
    return path.stem if is_file else path.name


def has_wildcard(path: str | Path) -> bool:
    """Whether a path stands for the files that match it; a file of that very name comes first."""
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def _expand_sources(sources: Iterable[str | Path]) -> list[Path]:
    """Replaces lists and wildcards by the paths they stand for, each once."""
    paths = {}
    for source in sources:
        if not str(source).strip():
            raise UserError('"" names no images; is a variable of the shell empty?')
        source = Path(source)
        is_list = source.suffix.lower() == ".txt" and source.is_file()
        for path in _read_list(source) if is_list else [source]:
            for match in _match_wildcard(path):
                paths[os.path.abspath(match)] = match
    return list(paths.values())


def _read_list(file: Path) -> list[Path]:
    content = file.read_bytes()
    encoding = "utf-16" if content.startswith(UTF_16_MARKS) else "utf-8-sig"  # PowerShell's > writes UTF-16
    try:
        lines = content.decode(encoding).splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: expected a text file in UTF-8 with one path a line") from None
    paths = [file.parent / line.strip() for line in lines if line.strip()]
    for path in paths:
        if not has_wildcard(path) and not os.path.lexists(path):
            raise UserError(f"{file}: {_advise_on_path(path)}; expected one path a line, relative to {file.parent}")
    return paths


def _match_wildcard(path: Path) -> list[Path]:
    if not has_wildcard(path):
        return [path]
    folder = path  # the part that is there stands for itself, whatever brackets are in its name
    while not folder.exists() and folder != folder.parent:  # on Windows a drive may not exist either
        folder = folder.parent
    pattern = path.relative_to(folder)
    matches = sorted(glob.glob(os.path.join(glob.escape(str(folder)), pattern), recursive=True))
    if not matches:
        raise UserError(f"{path}: no file matches")
    return [Path(match) for match in matches]


def _group_paths(paths: Iterable[Path]) -> Iterable[tuple[Path, list[Path]]]:
    """Pairs of a path and, where it is an image file, all image files among the paths in its folder."""
    image_files = {}
    for path in paths:
        is_image_file = path.suffix.lower() in IMAGE_ENDINGS and path.is_file()
        if is_image_file:
            image_files.setdefault(_folder_of(path), []).append(path)
        else:
            yield path, []
    for siblings in image_files.values():
        yield siblings[0], siblings


def _find_in_source(path: Path, siblings: list[Path], is_only: bool, left_out: LeftOut) -> list[Sample]:
    """The samples of a pair of `_group_paths`; `is_only`: no other path was named, so that it must hold images."""
    if siblings:
        if is_only:
            check_package(path)
        left_out[LEFT_RESULTS] += [file for file in siblings if is_result(file)]
        siblings = [file for file in siblings if not is_result(file)]
        # Truth is found beside images even where a wildcard does not name it.
        named = {file.name for file in siblings}
        beside = [file for file in path.parent.iterdir() if file.name not in named and _may_be_truth(file)]
        return _group_files([((file.name,), file) for file in siblings], path.parent, left_out, beside)
    if not path.exists():
        if is_only or not path.is_symlink():
            raise UserError(_advise_on_path(path))
        left_out[LEFT_LINKS].append(path)
        return []
    if path.is_dir():
        return _group_files(list_folder(path, left_out), path, left_out)
    if path.suffix.lower() != ".zip" and not is_only:  # a wildcard of the shell may give any file
        left_out[LEFT_UNREAD].append(path)
        return []
    return _group_files(list_zip(path), path, left_out)


def _may_be_truth(file: Path) -> bool:
    return file.stem.lower().endswith(TRUTH_SUFFIXES) or file.suffix.lower() in OUTLINE_ENDINGS


def _advise_on_path(path: Path) -> str:
    """Says that a path is not there, and which one may be meant."""
    if path.is_symlink():
        return f"{path}: the link is broken, {os.readlink(path)} is not there"
    missing = Path(os.path.abspath(path))
    while not missing.parent.exists() and missing != missing.parent:  # on Windows a drive may not exist either
        missing = missing.parent
    folder = missing.parent
    names = os.listdir(folder) if folder.is_dir() else []
    similar = get_close_matches(missing.name, names, n=1)
    if similar:
        advice = f"is {folder / similar[0]} meant?"
    elif folder.exists():
        advice = f"{folder} exists, but no {missing.name} in it"
    else:
        advice = f"there is no {folder}"
    if "stage1" in path.name:
        advice += "; python data/download.py fetches the competition's data"
    return f"{path}: no such file or folder; {advice}"


def _folder_of(path: Path) -> Path:
    """The absolute folder, or .zip without its ending, whose name tells a source from others."""
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return path
    return path.with_suffix("") if path.suffix.lower() == ".zip" else path.parent


def _name_sources(groups: dict[Path, list[Sample]]) -> list[Sample]:
    """Gives every sample its source, and puts the folder before every id of the folders that have an id in common."""
    folders_of_id = defaultdict(set)
    for folder, samples in groups.items():
        for sample in samples:
            folders_of_id[sample.id.lower()].add(folder)
    sharing = set().union(*(folders for folders in folders_of_id.values() if len(folders) > 1))
    prefixes = _shorten_folders(sharing)
    named = []
    for folder, samples in groups.items():
        prefix = f"{prefixes[folder]}__" if folder in sharing else ""
        named += [replace(sample, id=prefix + sample.id, source=str(folder)) for sample in samples]
    return named


def _shorten_folders(folders: Iterable[Path]) -> dict[Path, str]:
    """As few of the last parts of each folder as tell all apart; "images" counts as no name."""
    parts = {folder: folder.parts[1:] for folder in folders}
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {folder: "__".join(_without_images(folder_parts)[-count:]) for folder, folder_parts in parts.items()}
        if len({name.lower() for name in names.values()}) == len(names):
            return names
    return {folder: "__".join(folder_parts) for folder, folder_parts in parts.items()}


def _without_images(folders: PathParts) -> PathParts:
    return tuple(folder for folder in folders if folder.lower() != "images")


def _group_files(
    files: list[tuple[PathParts, File]], source: Path, left_out: LeftOut, beside: Iterable[Path] = ()
) -> list[Sample]:
    """Makes samples of the image files below a source, in Kaggle's layout or in any folders, with their truth.

    Args:
        files: below the source.
        source: folder or .zip.
        left_out: to which all files are added that are no images.
        beside: files in the source that may be truth, and are nothing else.
    """
    folders, results, others = _sort_files(files, left_out)
    above = {lower_parts(folder[:depth]) for folder in folders for depth in range(len(folder) + 1)}
    samples = []
    locations = {}  # image -> folder and name, see `pair_truths`
    plain = {}  # folders that are not in Kaggle's layout
    used = set()  # folders of masks
    spelled = {lower_parts(folder): folder for folder in folders}
    # Kaggle's layout is ID/images/ID.png with ID/masks/*.png. ID/images comes first and marks ID/masks as used.
    for folder, folder_files in sorted(folders.items(), key=lambda item: lower_parts(item[0][-1:]) == ("masks",)):
        if folder in results:  # the source itself
            left_out[LEFT_RESULTS] += [file for file in folder_files if file.name in RESULT_PICTURES]
            folder_files = [file for file in folder_files if file.name not in RESULT_PICTURES]
        image_files, truth_files = split_truth_files(folder_files)
        masks = spelled.get((*lower_parts(folder[:-1]), "masks"))
        parent = folder[-2] if len(folder) > 1 else ""
        has_one_image = lower_parts(folder[-1:]) == ("images",) and len(image_files) == 1
        if is_in_results(folder, results):
            left_out[LEFT_RESULTS] += folder_files
        elif has_one_image and (masks or image_files[0].stem == parent):
            name = parent or source_name(source)
            samples.append(pair_masks(Sample(name, image_files[0], tuple(folders.get(masks, ())))))
            locations[str(image_files[0])] = folder, image_files[0].stem
            used.add(masks)
            left_out[LEFT_MASKS] += truth_files
        elif folder not in used and is_beside_images(folder, folders.keys() | results, above):
            left_out[LEFT_MASKS] += folder_files
        elif folder not in used:
            plain[folder] = image_files
            left_out[LEFT_MASKS] += truth_files
    samples += _name_images(plain, source, folders, locations)
    candidates = [((*folder, file.name), file) for folder, folder_files in folders.items() for file in folder_files]
    candidates += [((file.name,), file) for file in beside]
    return pair_truths(samples, locations, [*candidates, *others], results, left_out)


def _sort_files(
    files: Iterable[tuple[PathParts, File]], left_out: LeftOut
) -> tuple[dict[PathParts, list[File]], set[PathParts], list[tuple[PathParts, File]]]:
    """Image files by their folder, the folders that hold results, and other files, which are added to `left_out`."""
    folders = defaultdict(list)  # in the order of `files`, which are sorted
    results = set()
    others = []
    for parts, file in files:
        if parts[-1] == SOURCE_RECORD:
            results.add(parts[:-1])
        elif any(map(is_hidden, parts)):
            continue
        elif parts[-1].lower().endswith(IMAGE_ENDINGS):
            reason = _find_obstacle(file)
            if reason:
                left_out[reason].append(file)
            else:
                folders[parts[:-1]].append(file)
        else:
            others.append((parts, file))
    left_out[LEFT_UNREAD] += [file for _, file in others]
    return folders, results, others


def _name_images(
    plain: dict[PathParts, list[File]],
    source: Path,
    folders: Container[PathParts],
    locations: dict[str, tuple[PathParts, str]],
) -> list[Sample]:
    """Samples of the images in folders that are not in Kaggle's layout; adds their places.

    Args:
        plain: folder -> images.
        source: folder or .zip.
        folders: all that hold image files.
        locations: of `pair_truths`.
    """
    # An archive often holds one folder with all images; its name is no part of the ids.
    top_folders = {folder[:1] for folder in plain}
    start = 1 if source.is_file() and len(top_folders) == 1 else 0
    samples = []
    for folder, image_files in plain.items():
        stems = {file.stem for file in image_files}
        for file in image_files:
            stem = nnunet_name(folder, file.stem, stems, folders)
            names = _without_images(folder[start:] if stem is None else folder[start:-1])
            stem = stem or file.stem
            samples.append(Sample("__".join((*names, stem)), file))
            locations[str(file)] = folder, stem
    return samples


def _find_obstacle(file: File) -> tuple[str, str] | None:
    """Why a file of a microscope is left out, for one and for many; None where it can be read."""
    package = missing_package(file)
    if package:
        return f"file that needs pip install {package}", f"files that need pip install {package}"
    return LEFT_PACKED if is_microscope_file(file) and not isinstance(file, Path) else None


def check_unique_ids(samples: Iterable[Sample]) -> None:
    """Raises UserError where two samples have one id."""
    seen = {}
    for sample in samples:
        if any(unicodedata.category(letter) in NO_LETTERS for letter in sample.id):
            raise UserError(f"{ascii(str(sample.image))}: its name holds bytes that are no text (UTF-8); rename it")
        key = sample.id.lower()  # on many disks a.png and A.png are one file
        if key in seen:
            files = f"{seen[key].image} and {sample.image}"
            raise UserError(f"{files}: two images have the id {sample.id}; rename or move one")
        seen[key] = sample


def _format_left_out(left_out: LeftOut) -> str:
    """Such as "left out: 3 files (.doc, .xlsx), 1 broken link (a.png)"; an empty text where nothing was."""
    texts = []
    for reason, files in left_out.items():
        if not files:
            continue
        one, many = reason
        text = f"{len(files)} {many if len(files) > 1 else one}"
        if reason in (LEFT_MASKS, LEFT_RESULTS, LEFT_WITHOUT_TRUTH):
            shown = []
        elif reason == LEFT_LINKS:
            shown = sorted({file.name for file in files})
        else:
            shown = sorted({Path(file.name).suffix.lower() or file.name for file in files})
        if len(shown) > SHOWN_DETAILS:
            shown[SHOWN_DETAILS:] = ["…"]
        texts.append(f"{text} ({', '.join(shown)})" if shown else text)
    return f"left out: {', '.join(texts)}" if texts else ""


@functools.cache  # the scripts look at a source more than once
def say_once(line: str, sources: str = "") -> None:
    """Prints a line on stderr, the first time that it is of these sources."""
    print(line, file=sys.stderr)
