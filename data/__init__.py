"""Modules that carry files and pixels in and out; none imports keras or a top-level script."""
