"""The command line that figures have in common."""

from experiments.run.cli import Parser


def figure_parser(name: str, doc: str, out: str | None, out_help: str = "path of the files without ending") -> Parser:
    """Of ``python -m figures.<name>``: its help is the first paragraph of ``doc``; --out has the default ``out``, and None
    stands for what ``out_help`` says."""
    parser = Parser(prog=f"python -m figures.{name}", description=doc.split("\n\n")[0])
    parser.add_argument("--out", default=out, help=out_help + ("" if out is None else " (default: %(default)s)"))
    return parser
