"""Print what the build and the extras of pyproject.toml need, for pip; the project is built in place.

python tools/requirements.py [EXTRA]    of one extra alone, or of all but `docs`, which only the site needs
python tools/requirements.py build      of the build alone, without torch: it is small
"""

import sys

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    config = tomllib.load(file)
project = config["project"]
build, extras = config["build-system"]["requires"], project["optional-dependencies"]
if sys.argv[1:] == ["build"]:
    wanted = [requirement for requirement in build if not requirement.startswith("torch")]
else:
    wanted = [] if sys.argv[1:] else build + project["dependencies"]
    for name in sys.argv[1:] or [name for name in extras if name != "docs"]:
        wanted += [requirement for requirement in extras[name] if not requirement.startswith(project["name"])]
print("\n".join(dict.fromkeys(requirement.replace(" ", "") for requirement in wanted)))
