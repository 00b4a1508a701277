"""Which fakes fail the checks of some clauses, of any topic: `cd tests && python -m fakes CLAUSE ...`"""

import argparse
from fnmatch import fnmatchcase

from . import harness
from .catalogue import FAKES


def main() -> None:
    """Run every fake on the clauses that are named and print, check by check, which of them fail it."""
    parser = argparse.ArgumentParser(prog="python -m fakes", description=__doc__)
    parser.add_argument("clause", nargs="+", help="clause id or pattern, such as 'delete.*'")
    wanted = parser.parse_args().clause
    caught: dict[str, list[str]] = {}
    for fake in FAKES.values():
        chosen = [
            c for c in harness.selected(fake.points) if any(fnmatchcase(c.clause.id, p) for p in wanted)
        ]
        for check in harness.perform(fake, chosen).failed():
            caught.setdefault(check, []).append(fake.name)
    for check in harness.demanded():
        if any(fnmatchcase(check.partition(":")[0], pattern) for pattern in wanted):
            print(f"{check}: {', '.join(caught.get(check, [])) or 'NO FAKE FAILS THIS'}")


if __name__ == "__main__":
    main()
