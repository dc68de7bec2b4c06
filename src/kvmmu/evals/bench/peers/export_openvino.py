"""Write a Hugging Face folder as OpenVINO IR: python export_openvino.py FOLDER OUT fp32|int8.

Runs in an environment that has optimum-intel; imports nothing of kvmmu.
"""

from __future__ import annotations

import sys
from pathlib import Path


def export(folder: str, out: str, weights: str) -> None:
    """Convert the weights and the tokenizer."""
    from optimum.exporters.openvino import main_export
    from optimum.intel.openvino import OVConfig

    main_export(
        folder,
        out,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp32"),
        convert_tokenizer=True,
        stateful=True,
    )
    if weights == "int8":
        _compress(Path(out))


def _compress(out: Path) -> None:
    """Make all weights 8-bit, asymmetric by channel, as optimum-intel does by default."""
    import nncf
    import openvino

    plain = out / "openvino_model.xml"
    model = nncf.compress_weights(
        openvino.Core().read_model(plain), mode=nncf.CompressWeightsMode.INT8_ASYM
    )
    made = out / "compressed.xml"
    openvino.save_model(model, made, compress_to_fp16=False)
    del model
    for file in (plain, made):
        for suffix in (".xml", ".bin"):
            part = file.with_suffix(suffix)
            if file == plain:
                part.unlink()
            else:
                part.rename(plain.with_suffix(suffix))


if __name__ == "__main__":
    export(*sys.argv[1:4])
