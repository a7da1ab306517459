// Sampling of one row of logits. The order of a row, from its raw logits x:
//
//   1. logprobs, where asked: x[i] - log(sum exp(x)), from the logits as they came
//   2. penalties: x[i] -= frequency_penalty * count + presence_penalty for the ids of the output; then, for the ids of
//      prompt and output, x[i] = x[i] > 0 ? x[i] / repetition_penalty : x[i] * repetition_penalty
//   3. logit_bias is added; banned ids become -inf; with allowed_ids all others become -inf
//   4. temperature 0: the lowest id among the greatest x. Otherwise weights w[i] = exp((x[i] - max x) / temperature)
//   5. ids are ranked by (w descending, id ascending), and a prefix of that ranking is kept, the shortest of:
//        top_k: the first k ids
//        top_p: the ids before which less than top_p of the mass of top_k's ids has gone by (renormalised after
//               top_k, as transformers and vLLM do; the first id always stays)
//        min_p: the ids with w >= min_p * max w
//   6. one uniform number u in [0, 1) of Philox(seed, sample_index, position): the first kept id, in id order, at which
//      the cumulated weight exceeds u times the kept weight
//
// A row is invalid, with token -1, when its logits hold NaN or +inf, or when every id is masked. Sums are in double in
// a fixed order and the code is the same on every processor, so the same logits give the same token everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "batch/batch.h"
#include "ops/philox.h"

namespace tokenmill {

size_t sample_scratch_bytes(int64_t vocab);

// Samples one row; logits [vocab] are destroyed. out's vectors have their final sizes already. False when an id of the
// row's lists is outside the vocabulary.
bool sample_row(float* logits, int64_t vocab, const SamplingRow& row, std::byte* scratch, SampledToken& out);

}  // namespace tokenmill
