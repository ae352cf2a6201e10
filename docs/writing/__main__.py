"""``python -m docs.writing``, from the repository's root: writes what of the documents is made from the code."""

from __future__ import annotations

import sys

from docs.writing import channel, completions, man_pages, tables


def main() -> None:
    for folder, files in ((man_pages.FOLDER, man_pages.pages()), (completions.FOLDER, completions.scripts())):
        for old in folder.rglob("*"):
            if old.is_file() and str(old.relative_to(folder)) not in files:
                old.unlink()
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    channel.PAGE.write_text(channel.page(), encoding="utf-8")
    policy = tables.written(tables.PAGE.read_text(encoding="utf-8"))
    tables.PAGE.write_text(policy, encoding="utf-8")
    if unsaid := tables.unsaid(policy):
        sys.exit(f"{tables.PAGE}: the last column says nothing yet of {', '.join(unsaid)}")


if __name__ == "__main__":
    main()
