"""Print what the build and every extra of pyproject.toml need, for pip; the project is built in place.

`python tools/requirements.py build` prints what the build needs beside torch: it is small.
"""

import sys

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    config = tomllib.load(file)
project = config["project"]
wanted = config["build-system"]["requires"]
if sys.argv[1:] == ["build"]:
    wanted = [requirement for requirement in wanted if not requirement.startswith("torch")]
else:
    wanted = wanted + project["dependencies"]
    for extra in project["optional-dependencies"].values():
        wanted += [requirement for requirement in extra if not requirement.startswith(project["name"])]
print("\n".join(dict.fromkeys(requirement.replace(" ", "") for requirement in wanted)))
