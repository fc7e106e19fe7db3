"""Two measurements of a trained InstAlign: phrase-object alignment as in section 9.1, and which of its matrices tells
the words of an instance.

Letters: E expressions, N queries, L tokens.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from refseg.analysis.trained_model import TrainedModel, batches
from refseg.errors import UsageError
from refseg.evaluation.alignment import MIN_IOU, average_precision, pointing
from refseg.models import InstAlign
from refseg.models.instalign.heads import misalignment, word_attention
from refseg.models.losses import BlockOutput, Referents
from refseg.models.losses.instances import match
from refseg.models.postprocess import word_weights

# Section 9.1, gRefCOCO val: mean, median, minimum, and maximum of POA
PAPER = {"oracle": (0.194, 0.135, 0.02, 0.852), "natural": (0.142, 0.105, 0.03, 0.697)}


def measure_instalign(trained: TrainedModel) -> dict[str, Any]:
    """Measure POA and the words of instances on a data set.

    Returns:
        "poa": for "oracle" (queries matched with the annotated instances, as in training) and "natural" (queries of
        relevance above 0.5) the mean, median, minimum, and maximum of POA (eq. 4, in the last block).
        "words", if the data say which words describe an instance (RefShapes): for each matrix the share of matched
        instances whose top word describes them ("pointing"), the average precision of all words ("AP"), and "pointing"
        for the words that no other referent shares ("own"), in percent. Matrices are eq. 2 in the last block ("dot")
        and the object-text attention of each block, averaged over heads and by head. "chance" is the level of equal
        weights. Instances count that the mask of the matched query covers with an IoU of at least 0.5.
    """
    cfg, model, dataset = trained
    if not isinstance(model, InstAlign):
        raise UsageError(f"{cfg.filename} is no InstAlign model.")
    poa: dict[str, list[float]] = {"oracle": [], "natural": []}
    scores: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for data in batches(dataset, cfg.test_dataloader.batch_size):
        batch = model.data_preprocessor(data, False)["batch"]
        with torch.no_grad():
            # Decode, and match the last block's queries with the annotated instances
            images = model.encode_images(batch) if model.shares_images else None
            pixels, text, groups = model.encode(batch, images)
            word_feats, word_mask = text.per_expression()
            decoded = model.decoder(pixels, word_feats, word_mask, groups=groups, heads=model.heads)
            query_feats, words, _ = decoded[-1]
            dot = word_attention(query_feats, words, word_mask)
            relevance_logits, mask_embeds = model.heads(query_feats)
            misaligned = misalignment(query_feats, words, dot)
            block = BlockOutput(relevance_logits, mask_embeds, misaligned)
            referents = Referents(batch, pixels.mask_feats, groups)
            if max(referents.counts) == 0:
                continue
            (pairs,), _ = match([block], referents, model.instances)
            masks = groups.dot(block.mask_embeds, pixels.mask_feats) > 0  # (E, N, h, w)
        # POA in both settings
        poa["oracle"] += misaligned[pairs.expression, pairs.query].tolist()
        poa["natural"] += misaligned[relevance_logits > 0].tolist()
        # Matrices (E, N, L) by name
        matrices = {"dot": dot}
        for number, output in enumerate(decoded):
            if output.word_attention is not None:
                matrices[f"block {number}"] = output.word_attention.mean(1)
                for head, weights in enumerate(output.word_attention.unbind(1)):
                    matrices[f"block {number}, head {head}"] = weights
        # Compare each pair's weights with the words that describe its instance
        word_of = batch.tokens.word_of.index_select(0, batch.tokens.text_of)
        expressions = [(truth, e) for truth in batch.ground_truth for e in truth.record.expressions]
        true_masks = referents.covered() > 0.5
        for row, query, instance in zip(*(indices.tolist() for indices in pairs), strict=True):
            truth, expression = expressions[row]
            described_by = expression.tags.get("words")
            mask, true_mask = masks[row, query], true_masks[referents.index[row, instance]]
            iou = (mask & true_mask).sum() / (mask | true_mask).sum().clamp_min(1)
            if not isinstance(described_by, dict) or iou < MIN_IOU:
                continue
            ids = [truth.record.instances[index].instance_id for index in expression.referents]
            by_instance = [frozenset(int(word) for word in described_by.get(name, ())) for name in ids]
            right = by_instance[instance]
            own = right - frozenset.intersection(*by_instance)
            num_words = len(expression.text.split())
            if not right:
                continue
            shares = {
                name: word_weights(matrix[row, query][None], word_of[row], num_words)[0].tolist()
                for name, matrix in matrices.items()
            }
            for name, weights in (shares | {"chance": [0.0] * num_words}).items():
                own_pointing = pointing(weights, own) if own else np.nan
                scores[name].append((pointing(weights, right), average_precision(weights, right), own_pointing))
    numbers: dict[str, Any] = {
        "poa": {
            name: dict(mean=np.mean(v), median=np.median(v), min=min(v), max=max(v)) if v else None
            for name, v in poa.items()
        }
    }
    if scores:
        of_dot = np.array(scores["dot"])
        numbers |= {"instances": len(of_dot), "instances with own words": int((~np.isnan(of_dot[:, 2])).sum())}
        numbers["words"] = {}
        for name, values in scores.items():
            pointing_all, precision, pointing_own = 100 * np.array(values).T
            known = pointing_own[~np.isnan(pointing_own)]
            own = float(known.mean()) if len(known) else None
            numbers["words"][name] = dict(pointing=float(pointing_all.mean()), AP=float(precision.mean()), own=own)
    return numbers
