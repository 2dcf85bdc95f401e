"""What pyproject.toml can't say: a wheel has three of our folders in salsa_dist/built_in/."""

from setuptools import find_packages, setup

FOLDERS = {f"salsa_dist.built_in.{name}": name for name in ("shards", "ds_configs", "launchers")}

setup(packages=[*find_packages(include=["salsa_dist*"]), *FOLDERS], package_dir=FOLDERS)
