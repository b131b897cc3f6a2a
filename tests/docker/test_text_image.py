"""The cpu image serves a text model: the image contains tokenizers, but neither torch
nor transformers.
"""

import pytest

pytest.importorskip("tokenizers")

from tests.support.texts import text_model

pytestmark = [pytest.mark.docker, pytest.mark.long]


def test_texts_are_answered_without_training_framework(image, start, tmp_path):
    folder = text_model(tmp_path / "model")
    folder.chmod(0o755)
    with start(
        image, "-v", f"{folder}:/model:ro", command=["serve", "/model", "--insecure"]
    ) as container:
        container.wait_healthy()
        answer = container.ask(["", "[CLS]"])
        assert answer.status == 200  # The mean of [CLS] and [SEP].
        assert answer.body["predictions"][0] == [0.5]
        assert container.ask(["x" * 200_001]).status == 400
        frameworks = (
            "import importlib.util as u; print([n for n in ('torch', 'transformers') if "
            "u.find_spec(n)])"
        )
        assert container.run("python", "-c", frameworks).strip() == "[]"
