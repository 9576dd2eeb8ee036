"""The hub's cache as Python's huggingface_hub sees it: what it writes, and what petals wrote.

usage: hub_cache.py fill MODEL FILE...     fetches these files into HF_HOME, and prints the snapshot's folder
       hub_cache.py find MODEL FILE...     finds these files in HF_HOME without asking the hub, and looks through the cache
"""

import hashlib
import os
import sys

from huggingface_hub import hf_hub_download, scan_cache_dir


def main():
    command, model, *files = sys.argv[1:]
    paths = [hf_hub_download(model, file, local_files_only=command == "find") for file in files]
    if command == "fill":
        print(os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0]))
        return
    for path in paths:
        # What is called by its SHA-256 has it.
        blob = os.path.realpath(path)
        name = os.path.basename(blob)
        if len(name) == 64:
            with open(blob, "rb") as content:
                assert hashlib.sha256(content.read()).hexdigest() == name, path
    info = scan_cache_dir()
    assert not info.warnings, info.warnings
    [repo] = info.repos
    assert repo.repo_id == model and "main" in repo.refs, repo
    [revision] = repo.revisions
    found = {file.file_name for file in revision.files}
    assert set(files) <= found, (files, found)
    print(f"{len(found)} files of {repo.repo_id}, {repo.size_on_disk} bytes, as huggingface_hub reads them")


main()
