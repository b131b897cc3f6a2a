"""Wheels of tiny packages in a folder, as the only index of uv."""

import sysconfig
import zipfile

import mlflow


def write_wheel(folder, name, version, files, requires=()):
    """Write a wheel with these files, and return its path."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    content = {
        **files,
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_in_wheel, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(name_in_wheel, text)
    return path


def write_index(folder, **versions):
    """Write a package of a module per name and version, whose VERSION has the version,
    and MLflow, which is imported from this environment.
    """
    here = {"mlflow_here.pth": sysconfig.get_path("purelib") + "\n"}
    write_wheel(folder, "mlflow", mlflow.__version__, here)
    for name, names_versions in versions.items():
        for version in names_versions:
            write_wheel(folder, name, version, {f"{name}.py": f"VERSION = {version!r}\n"})
    return folder
