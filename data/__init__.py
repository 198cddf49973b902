"""Modules that carry files and pixels in and out; none imports keras or a top-level script.

Files and options
    files          describes files, writes them whole; the class of the user's mistakes
    options        the options of all scripts
    listings       lists a folder or an archive
    layouts        pairs images with their truth by folders and names
    sources        finds the images of folders, archives, wildcards and lists
    terminal       keeps what TensorFlow says of itself off the terminal
    download       a script that fetches the public data
    make_sample    a script that draws data/sample

Reading of images
    images         the pixels of any file
    pixels         checks and turns decoded pixels
    tiff_series    which pages of a TIFF are one image
    tiffs          whole TIFFs, rows of large ones, levels of pyramids
    microscopes    files of microscopes, by packages that may be missing
    stacks         planes of files with channels, z and time
    channels       which channel may show the nuclei
    pixel_size     how large a pixel is

Reading of truth
    truth          the true nuclei of an image, and where they look wrong
    label_files    label pictures, masks, ROI sets, GeoJSON
    run_lengths    nuclei as run lengths

From an image to the gray that the network sees (Preprocessed_data.py)
    intensity      channels and percentiles
    artifacts      flat ground, hot and dead pixels
    tiles          which images were cut from one larger image

Training (Train.py)
    crops          draws crops and makes their target
    augment        changes crops at random
    crowding       pastes nuclei beside others
    empty_crops    draws crops without nuclei
    records        the folder of a training and its record
    curves         curves and examples of a training

From the network's output to nuclei (Predict_masks.py)
    scales         at which scales an image is predicted
    slides         large images in strips
    nuclei         numbers nuclei
    confidence     how sure each nucleus is, and which are kept
    runs           a prediction of many images
    cluster        the same on a Dask cluster

Results
    results        writes the files of each image and of all
    outputs        labels, masks, overlays, Kaggle's table
    outlines       ROI sets for Fiji, GeoJSON for QuPath
    omezarr        labels as OME-Zarr
    measure        measures nuclei and images
    shapes         ellipses, perimeters, convex hulls
    tables         writes tables and outlines
    pictures       outlines, coloured labels, the difference to the truth
    report_cards   one image of report.html
    report         report.html

Scores and export (Evaluate_model.py, Model.py)
    predictions    reads what is to be scored
    matching       matches true and predicted nuclei, and scores them
    export         the network as ONNX and for bioimage.io
    figure         draws Unet.png
"""
