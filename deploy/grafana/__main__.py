"""Write the dashboards as JSON, for Grafana to provision."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import ensemble, latency, throughput

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = {"latency": latency, "throughput": throughput, "ensemble": ensemble}


def rendered() -> dict[Path, str]:
    """The text of every file."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    texts = {}
    for name, module in DASHBOARDS.items():
        board = module.dashboard().build()
        for number, panel in enumerate(board.panels or (), 1):
            panel.id_val = number
        texts[FOLDER / f"{name}.json"] = encoder.encode(board) + "\n"
    return texts


def main() -> None:
    """Write what has changed."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in rendered().items():
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
