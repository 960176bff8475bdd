"""`samnn plan`, `samnn predict`, `samnn crf`, `samnn export`: from plans to predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand


def plan(
    dataset: Annotated[
        list[str], typer.Option("--dataset", "-d", help="Number or name of a dataset; may be repeated.")
    ],
    plans: Annotated[
        str,
        typer.Option(
            "--plans",
            "-p",
            help="The plans to add to: nnU-Net's, its ResEnc presets', or your own. They stay as they are.",
        ),
    ] = "nnUNetPlans",
    name: Annotated[str, typer.Option(help="Name of the plans to write.")] = "samnnPlans",
    gpu_memory_gb: Annotated[
        float, typer.Option("--gpu-memory-gb", min=1, help="Memory of the GPU that will train, in GiB.")
    ] = 8,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="`samed`, `sam2unet`, `enet`, …; may be repeated. Default: all."),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Such as `sam_vit_l` or `sam2_hiera_t`; once for each method that has one."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of LoRA. Default: left to the trainer (4, or its `_rank<N>`)."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=16, help="Side of the square to which SAM's patches are resized. Default: from the slices."
        ),
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess",
            help="First run nnU-Net's fingerprint, planning and 2D preprocessing where missing.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Make real training steps with random pictures (on the GPU if there is one) instead of estimates.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Explain the choices and write nothing.")
    ] = False,
) -> None:
    """Add configurations for our networks to existing nnU-Net plans: `2d_samed`, `2d_sam2unet`, `2d_enet`.

    They inherit from `2d`, so nothing is preprocessed again. Patch, image size, batch and micro-batch follow from the
    slices and the memory; a table says what each choice costs.

    **Examples**

        samnn plan -d 55

        samnn plan -d 55 -p nnUNetResEncUNetLPlans --name samnnResEncPlans --gpu-memory-gb 24

        samnn plan -d 55 --only samed --backbone sam_vit_l --rank 8 --measure --dry-run
    """
    from rich.console import Console

    from samnn.planning.command import Request, plan_dataset

    request = Request(
        base=plans,
        name=name,
        gpu_memory_gib=gpu_memory_gb,
        only=tuple(only or ()),
        backbones=tuple(backbone or ()),
        rank=rank,
        image_size=image_size,
        preprocess=preprocess,
        measure=measure,
        dry_run=dry_run,
    )
    for one in dataset:
        plan_dataset(one, request, Console())


class Folds(TyperCommand):
    """A command whose `-f` takes several values, as nnU-Net's does: `-f 0 1 2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spread, in_folds = [], False
        for arg in args:
            if arg.startswith("-"):
                in_folds = arg == "-f"
            elif in_folds and spread[-1] != "-f":
                spread.append("-f")
            spread.append(arg)
        return super().parse_args(ctx, spread)


def predict(
    images: Annotated[
        Path,
        typer.Option(
            "-i", metavar="FOLDER", help="Images, `CASE_0000.nii.gz`, … as in training.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", metavar="FOLDER", help="Folder for the label maps.", show_default=False)
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            metavar="FOLDER",
            help="The model's folder (`Trainer__Plans__configuration`), instead of -d and -c.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("-d", metavar="ID", help="Dataset of the model, by number or name.")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("-c", metavar="CONFIG", help="Its configuration.")
    ] = None,
    trainer: Annotated[str, typer.Option("-tr", metavar="NAME", help="Its trainer.")] = "nnUNetTrainer",
    plans: Annotated[str, typer.Option("-p", metavar="PLANS", help="Its plans.")] = "nnUNetPlans",
    folds: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            metavar="FOLD …",
            help="Folds whose mean is taken: `-f 0 1 2`. Default: all that are finished.",
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("-chk", metavar="FILE", help="Checkpoint.")
    ] = "checkpoint_final.pth",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(
            help="`auto`: fp16 on a GPU, as nnU-Net; on a CPU bf16 where it has that natively, else fp32."
        ),
    ] = "auto",
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Read checkpoints that hold more than tensors and numbers: they can run code."
        ),
    ] = False,
    step_size: Annotated[
        float, typer.Option("-step_size", min=0.01, max=1, help="Step between tiles, as a share of the tile.")
    ] = 0.5,
    disable_tta: Annotated[
        bool,
        typer.Option("--disable_tta", "--disable-tta", help="No mirror images: faster and less accurate."),
    ] = False,
    save_probabilities: Annotated[
        bool,
        typer.Option(
            "--save_probabilities", "--save-probabilities", help="Write `CASE.npz` and `CASE.pkl`, too."
        ),
    ] = False,
    continue_prediction: Annotated[
        bool,
        typer.Option(
            "--continue", "--c", "--continue_prediction", help="Leave out cases whose files are there."
        ),
    ] = False,
    previous: Annotated[
        Path | None,
        typer.Option(
            "-prev_stage_predictions", metavar="FOLDER", help="Label maps of the stage before, for a cascade."
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cuda", "cpu", "mps"],
        typer.Option("-device", "--device", help="`auto`: a GPU if there is one."),
    ] = "auto",
    preprocessing_threads: Annotated[
        int | None,
        typer.Option("-npp", min=0, metavar="N", help="Threads that preprocess. Default: by cores."),
    ] = None,
    export_threads: Annotated[
        int | None, typer.Option("-nps", min=0, metavar="N", help="Threads that export. Default: by cores.")
    ] = None,
    num_parts: Annotated[
        int,
        typer.Option("-num_parts", min=1, help="Commands that share the folder, with different -part_id."),
    ] = 1,
    part_id: Annotated[int, typer.Option("-part_id", min=0, help="Which of these this one is, from 0.")] = 0,
    not_on_device: Annotated[
        bool,
        typer.Option("--not_on_device", "--not-on-device", help="Keep sums in main memory, not on the GPU."),
    ] = False,
    disable_progress_bar: Annotated[
        bool, typer.Option("--disable_progress_bar", "--disable-progress-bar", help="For logs.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more about tiles.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read the model, list the cases and the memory they need; predict nothing."
        ),
    ] = False,
) -> None:
    """Predict with any model of nnU-Net's: its own trainers and ours, 2D, 3D and cascades.

    Takes the arguments of `nnUNetv2_predict`, and `-m` as `nnUNetv2_predict_from_modelfolder`. Label maps appear
    whole or not at all; stopped, the same command with `--continue` goes on.

    **Examples**

        samnn predict -i imagesTs -o predictions -d 55 -c 2d -tr nnUNetTrainerSAMed -f 0

        samnn predict -i imagesTs -o predictions -m nnUNetTrainer__nnUNetPlans__3d_fullres -f 0 1 2 --continue

        samnn predict -i imagesTs -o predictions -d 55 -c 3d_fullres --precision fp32 --save-probabilities
    """
    from samnn.inference.command import Asked, predict_folder

    if (model is None) == (dataset is None) or (dataset is None) != (configuration is None):
        raise typer.BadParameter("name the model by -m, or by -d and -c together (and -tr, -p)")
    if part_id >= num_parts:
        raise typer.BadParameter("counts from 0 to -num_parts minus one", param_hint="-part_id")
    asked = Asked(
        images=images, out=out, model=model, dataset=dataset, configuration=configuration, trainer=trainer, plans=plans,
        folds=folds or None, checkpoint=checkpoint, precision=precision, trust=trust, step_size=step_size,
        mirroring=not disable_tta, save_probabilities=save_probabilities, continue_prediction=continue_prediction,
        previous=previous, device=device, preprocessing_threads=preprocessing_threads, export_threads=export_threads,
        part=(part_id, num_parts), on_device=not not_on_device, progress=not disable_progress_bar, verbose=verbose,
        dry_run=dry_run,
    )  # fmt: skip
    predict_folder(asked)


def crf(
    probabilities: Annotated[
        Path,
        typer.Argument(
            metavar="PROBABILITIES",
            help="Folder of nnU-Net's saved probabilities (`.npz` of `nnUNetv2_predict --save_probabilities`, or of "
            "`nnUNetv2_train … --npz` in `fold_X/validation`).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the refined label maps.")],
    weight: Annotated[float, typer.Option(help="Weight of the smoothness term, in logits.")] = 1.0,
    bandwidth_mm: Annotated[
        float, typer.Option(help="Bandwidth θ of the smoothness term, along every axis.")
    ] = 1.0,
    kernel: Annotated[
        Literal["crfseg", "dense"],
        typer.Option(
            help="Which neighbours count: as in the package crfseg (none that shares a coordinate with the voxel), or "
            "all, as a mean, so that `--weight` means the same for any bandwidth and spacing."
        ),
    ] = "crfseg",
    filter_size: Annotated[int, typer.Option(help="Window along each axis, in voxels; odd.")] = 11,
    iterations: Annotated[int, typer.Option(min=0, help="Mean-field iterations.")] = 5,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the images (`case_0000.nii.gz`, …): adds a term that follows their edges. Needs "
            "`--intensity`."
        ),
    ] = None,
    intensity: Annotated[
        float | None,
        typer.Option(
            help="With --images: intensities this far apart belong to one tissue, for CT in HU, such as 50."
        ),
    ] = None,
    appearance_weight: Annotated[float, typer.Option(help="With --images: weight of that term.")] = 1.0,
    appearance_mm: Annotated[
        float, typer.Option(help="With --images: its bandwidth; its window is 5 voxels along each axis.")
    ] = 3.0,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the image or label map of each case, whose grid holds. Default: the label maps that "
            "nnU-Net wrote beside the probabilities."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="The model's `dataset.json`. Default: the one beside or above PROBABILITIES."),
    ] = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Write refined probabilities (`.npz`), too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results, also of other settings.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, list the cases, and write nothing.")
    ] = False,
) -> None:
    """Apply a CRF to saved probabilities, without training: neighbours pull each voxel towards their classes.

    Distances are in mm. Stopped? The same command goes on with the cases that are not finished. A case takes about
    five times the memory of its probabilities.

    **Examples**

        samnn crf predictions refined

        samnn crf predictions refined --kernel dense --bandwidth-mm 2 --weight 3 --dry-run

        samnn crf predictions refined --images imagesTs --intensity 50 --save-probabilities
    """
    from rich.console import Console

    from samnn.apply_crf import Settings, apply_crf

    if (images is None) != (intensity is None):
        raise typer.BadParameter("--images and --intensity go together", param_hint="--images")
    settings = Settings(
        kernel=kernel,
        filter_size=filter_size,
        n_iter=iterations,
        smoothness_weight=weight,
        smoothness_theta_mm=bandwidth_mm,
        appearance_weight=appearance_weight if images is not None else None,
        appearance_theta_mm=appearance_mm,
        intensity_theta=intensity,
        save_probabilities=save_probabilities,
    )
    apply_crf(
        probabilities,
        out,
        settings,
        like=like,
        images=images,
        labels=labels,
        overwrite=overwrite,
        dry_run=dry_run,
        console=Console(),
    )


def export(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_FOLDER",
            help="A results folder of nnU-Net, `Trainer__Plans__configuration`; every fold that has ended is exported.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; its zip is `OUT.zip`.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold LoRA into the weights for good: a plain network.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT and OUT.zip if they exist.")
    ] = False,
) -> None:
    """Write a trained model with everything it needs, for nnU-Net's own commands.

    They predict from it where samnn is installed (`pip install samnn`), without pretrained weights and without
    nnUNet_extTrainer. The folder has the tree of nnUNet_results: set nnUNet_results to it, or install the zip.

    **Examples**

        samnn export nnUNet_results/Dataset055_SegTHOR/nnUNetTrainerSAMed__nnUNetPlans__2d samed_thorax

        samnn export nnUNet_results/Dataset055_SegTHOR/nnUNetTrainerSAMed__nnUNetPlans__2d samed_thorax --merge
    """
    import shlex

    from samnn.training.export import export as write

    done = write(model, out, merge=merge, overwrite=overwrite)
    folds = " ".join(done.folds)
    typer.echo(f"Wrote {done.model} and {done.archive}. Predict with either:\n")
    options = f"-i IMAGES -o PREDICTIONS -f {folds}"
    typer.echo(f"  nnUNetv2_predict_from_modelfolder -m {shlex.quote(str(done.model))} {options}\n")
    typer.echo(f"  nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(done.archive))}")
    typer.echo(f"  nnUNetv2_predict -d {done.dataset} -p {done.plans} -c {done.configuration} {options}")
