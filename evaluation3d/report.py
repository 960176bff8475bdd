"""report.html: the whole comparison in one file that opens offline, from the same tables as the CSV files."""

from __future__ import annotations

import base64
import platform
from importlib.metadata import version
from pathlib import Path

from samnn import __version__

from .cautions import cautions_of
from .comparison import Comparison
from .display import display_tables, letters_of
from .figures import differences_figure, ranks_figure, reliability_figure, values_figure
from .results import DATASET
from .slices import chosen_cases, draw_case
from .summary import EMPTY_MASK_POLICY

TEMPLATE = Path(__file__).with_name("report_template.html")
PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "surface-distance")


def render_report(comparison: Comparison, pictures: Path) -> str:
    """Render the report; pictures of cases are kept in the folder `pictures` for the next run."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    several = len(comparison.methods) > 1
    tables = display_tables(comparison)
    figures = {
        metric: {
            "values": _svg_uri(values_figure(comparison, metric)),
            "differences": _svg_uri(differences_figure(comparison, metric)) if several else None,
            "ranks": _svg_uri(ranks) if several and (ranks := ranks_figure(comparison, metric)) else None,
        }
        for metric in comparison.metrics
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        comparison=comparison,
        cautions=cautions_of(comparison),
        letters=letters_of(comparison),
        dataset=next(
            (part for part in Path(comparison.settings["reference"]).parts if DATASET.fullmatch(part)), None
        ),
        sources={method.name: method.source for method in comparison.methods},
        tables=tables,
        figures=figures,
        reliability=_svg_uri(reliability_figure(comparison)) if "Calibration" in tables else None,
        pictures=_pictures(comparison, pictures),
        definitions={metric: comparison.definition(metric) for metric in comparison.metrics},
        empty_mask_policy=EMPTY_MASK_POLICY,
        versions={
            "samnn": __version__,
            "Python": platform.python_version(),
            **{p: version(p) for p in PACKAGES},
        },
    )


def _pictures(comparison: Comparison, folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Class → (best, median or worst; case; picture), empty where no label maps were given."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for name in comparison.methods[0].classes:
        for word, case in chosen_cases(comparison, name).items():
            picture = draw_case(comparison, name, case, folder)
            if picture is not None:
                data = base64.b64encode(picture.read_bytes()).decode()
                found.setdefault(name, []).append((word, case, f"data:image/png;base64,{data}"))
    return found


def _svg_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
