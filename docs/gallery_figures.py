"""The figures of the gallery: the examples write them to files, not to pyplot."""

import shutil
from pathlib import Path

from sphinx_gallery.scrapers import figure_rst

FIGURES = Path(__file__).resolve().parents[1] / "build" / "gallery_figures"


def arguments(gallery_conf, script_vars):
    """The example's argument: a directory, or a file in it."""
    name = Path(script_vars["src_file"]).stem
    directory = FIGURES / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    several = name == "plot_illustrative_example"
    return [str(directory if several else directory / "figure.png")]


def scraper(block, block_vars, gallery_conf):
    """Move what the block has written into the gallery."""
    directory = FIGURES / Path(block_vars["src_file"]).stem
    written = []
    for file in sorted(directory.rglob("*.png")):
        target = next(block_vars["image_path_iterator"])
        shutil.move(file, target)
        written.append(target)
    return figure_rst(written, gallery_conf["src_dir"])
