"""Lists the benchmarks: `python -m benchmarks`; each is run by its own name, such as `python -m benchmarks.topn`."""

import ast
from pathlib import Path


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
        print(f"python -m benchmarks.{path.stem:<16} {summary}")


if __name__ == "__main__":
    main()
