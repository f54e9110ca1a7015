"""`agridistill models`: the models that come with AgriDistill."""

from __future__ import annotations

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, stdout


def models(json: options.Json = False) -> None:
    """List the models that come with AgriDistill: name, size, classes, accuracy and file."""
    from agridistill.runtime.shipped import shipped_models

    found = shipped_models()
    if json:
        print_json({"models": found})
        return
    from agridistill.cli.cells import new_table, percent, plain, show_table

    table = new_table("shipped models", "name", "size", "input", "classes", "accuracy")
    for model in found:
        size, pixels = f"{model['size_bytes'] / 1e6:.1f} MB", f"{model['image_size']} px"
        table.add_row(plain(model["name"]), size, pixels, str(len(model["classes"])), percent(model["test_accuracy"]))
    show_table(table)
    stdout.print("accuracy: share of right answers on unseen leaves of the data set that the model learnt from")
    for model in found:
        stdout.print(f"{model['name']}: {model['file']}", markup=False)
        stdout.print(f"  classes: {', '.join(model['classes'])}", markup=False)
    if found:
        next_command("predict", found[0]["name"], "IMAGE")
