"""The one thing pyproject.toml cannot say: `configs/` at the top level ships as nystromformer/configs."""

from setuptools import find_namespace_packages, find_packages, setup

setup(
    packages=[
        *find_packages(include=["nystromformer*"]),
        "nystromformer.configs",
        *(f"nystromformer.configs.{group}" for group in find_namespace_packages("configs")),
    ],
    package_dir={"nystromformer.configs": "configs"},
    package_data={"": ["*.yaml"], "nystromformer.attention": ["kernel/*.cpp", "kernel/*.h"]},
)
