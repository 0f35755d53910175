"""Says what pyproject.toml cannot: that data_checks/, which users edit at the root of a clone, is also part of the package."""

from setuptools import find_packages, setup

CHECKS = "lever_mlflow.gate.default_checks"

setup(
    packages=[*find_packages(include=["lever_mlflow*"]), CHECKS],
    package_dir={CHECKS: "data_checks"},
)
