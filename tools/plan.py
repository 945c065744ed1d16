"""What a training run will need, in seconds and without weights: memory by part, tokens/s, disk, and whether it fits.

python3 tools/plan.py spec/configs/llama3/70B_eagle.yaml --gpus 8 --gpu-memory 80 --nodes 1 max_length=4096
python3 tools/plan.py --table
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.errors import BadInput
from spec.progress import Wait

with Wait("importing torch and torchtune"):
    from spec.planning.plan import Machines, measure, plan, read_plan_config
    from spec.planning.show import show, table

CONSUMER = Machines(nodes=1, gpus=1, gpu_memory=24.0, tflops=140.0, memory_bandwidth=0.8)  # of the RTX 4090's kind
CONFIGS = Path(__file__).parents[1] / "spec" / "configs"


def main(
    config: Annotated[
        Path | None, Argument(help="A config; its target's sizes are in the JSON file beside it.")
    ] = None,
    settings: Annotated[
        list[str] | None, Argument(metavar="[KEY=VALUE]...", help="As in training; target=DIR gives other sizes.")
    ] = None,
    gpus: Annotated[int, Option(min=1, help="GPUs of a node.")] = 8,
    gpu_memory: Annotated[float, Option(min=1, help="GiB of a GPU.")] = 80.0,
    nodes: Annotated[int, Option(min=1, help="Nodes.")] = 1,
    tflops: Annotated[float, Option(min=1, help="TFLOP/s that a GPU reaches in large products of bf16.")] = 650.0,
    memory_bandwidth: Annotated[float, Option(min=0.01, help="TB/s that a pass over a GPU's memory reaches.")] = 2.6,
    node_bandwidth: Annotated[float, Option(min=0.1, help="GB/s of a GPU inside its node.")] = 300.0,
    network_bandwidth: Annotated[float, Option(min=0.1, help="GB/s of a GPU to other nodes.")] = 40.0,
    show_table: Annotated[
        bool,
        Option("--table", help="All configs, small ones on a consumer card, as Markdown."),
    ] = False,
) -> None:
    """Plan a run of CONFIG on NODES nodes."""
    machines = Machines(
        nodes=nodes,
        gpus=gpus,
        gpu_memory=gpu_memory,
        tflops=tflops,
        memory_bandwidth=memory_bandwidth,
        node_bandwidth=node_bandwidth,
        network_bandwidth=network_bandwidth,
    )
    if show_table:
        configs = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "smollm2")
        print(table(configs, [dataclasses.replace(machines, nodes=count) for count in (1, 2)]))
        print(table(sorted(CONFIGS.glob("smollm2/*.yaml")), [CONSUMER]))
        return
    if config is None:
        raise BadInput("no config given; there are " + ", ".join(f"{p}" for p in sorted(CONFIGS.glob("*/*.yaml"))))
    cfg, target = read_plan_config(config, settings or [])
    print(show(plan(cfg, measure(cfg, target), machines), cfg))


if __name__ == "__main__":
    cli.run(main)
