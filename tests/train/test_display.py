"""What a person reads while a network trains."""

import pytest

from stagecost.train.display import TrainingDisplay
from stagecost.train.history import EpochRecord


@pytest.mark.parametrize(("epochs", "estimate"), [(10, "  about 16 min left"), (2, "")])
def test_a_line_an_epoch_names_its_numbers_and_estimates_the_run(
    epochs: int, estimate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = EpochRecord(
        epoch=2,
        num_blocks=2,
        seconds=240.0,
        learning_rate=0.1,
        train_objective=1.5,
        train_loss=0.75,
        train_accuracy=70.0,
        gamma=0.5,
        val_loss=0.5,
        val_accuracy=80.0,
        val_losses=(1.0, 0.75, 0.5),
        val_accuracies=(10.0, 60.0, 80.0),
    )
    TrainingDisplay("train", epochs).epoch_ends(record)
    line = f"train epoch 2/{epochs}  train loss 0.7500  val loss 0.5000  val accuracy 80.00 %"
    assert capsys.readouterr().err == f"{line}  val loss over depth █▅▁{estimate}\n"
