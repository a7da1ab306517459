// What a batch writes: the lines of a request's results, of its error, and the id that ties both to the input's line.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/batch/batch_request.h"

namespace tokenmill {

// Every line that a batch writes carries "batch_req_INDEX_FINGERPRINT": as "id" in OpenAI's form and in errors, as
// meta_info.id in ours. The fingerprint covers the input's line and the batch's settings.
struct RecordId {
  int64_t index = 0;
  uint64_t fingerprint = 0;
};

std::string to_string(const RecordId& id);
// Of a line of an output file; nullopt where it is none of a batch.
std::optional<RecordId> find_record_id(std::string_view line);

struct RecordContext {
  std::string served_model_name;
  int64_t created = 0;  // seconds since 1970
};

// In our own form a line a sample, in OpenAI's one; each ends with '\n'. outputs: all samples, in order.
std::string result_lines(const BatchRequest& request, const RecordId& id, std::vector<Output>& outputs,
                         const RecordContext& context);

// {"id", "custom_id", "line", "response": null, "error": {"code", "message"}} and '\n'. custom_id: JSON text or "".
std::string error_line(const RecordId& id, const std::string& custom_id, int64_t line, std::string_view code,
                       std::string_view message);
// How every error line begins.
inline constexpr std::string_view kErrorLinePrefix = "{\"id\":\"batch_req_";

}  // namespace tokenmill
