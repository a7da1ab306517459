#include "engine/trace_writer.h"

#include <cerrno>
#include <chrono>
#include <cstring>

#include "engine/text_repr.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr size_t kBufferBytes = 1 << 18;

long long ll(int64_t value) { return value; }

// A request id inside a JSON string, cut to a length that a track's name can show.
std::string json_text(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 80)) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out;
}

}  // namespace

TraceWriter::TraceWriter(const std::string& path)
    : file_(std::fopen(path.c_str(), "w")), start_ns_(std::chrono::steady_clock::now().time_since_epoch().count()) {
  if (!file_) {
    throw Error(ErrorKind::kValue, "trace_path must be a file that can be written, got " + python_repr(path) + ": " +
                                       std::strerror(errno) + ".");
  }
  std::setvbuf(file_.get(), nullptr, _IOFBF, kBufferBytes);
  event(R"({"ph":"M","pid":1,"tid":0,"name":"process_name","args":{"name":"tokenmill"}})");
  event(R"({"ph":"M","pid":1,"tid":1,"name":"thread_name","args":{"name":"steps"}})");
}

TraceWriter::~TraceWriter() { std::fputs("\n]\n", file_.get()); }

template <class... Args>
void TraceWriter::event(const char* format, Args... args) {
  if (bytes_ >= kBytesMax) return;
  bytes_ += std::fputs(first_ ? "[\n" : ",\n", file_.get()) < 0 ? 0 : 2;
  first_ = false;
  if constexpr (sizeof...(Args) == 0) {
    bytes_ += std::fputs(format, file_.get()) < 0 ? 0 : static_cast<int64_t>(std::strlen(format));
  } else {
    bytes_ += std::fprintf(file_.get(), format, args...);
  }
}

void TraceWriter::step(const StepClock& clock, const Batch& batch, const SchedulerStats& stats) {
  const int64_t begin = clock.step_begin_ns();
  int64_t prefills = 0;
  for (const BatchRow& row : batch.rows) prefills += row.q_len > 1 || row.kv_len == 1;
  event(R"({"ph":"X","pid":1,"tid":1,"name":"step","ts":%.3f,"dur":%.3f,"args":{"step":%lld,"rows":%lld,)"
        R"("prefills":%lld,"tokens":%lld,"copies":%lld}})",
        micros(begin), static_cast<double>(clock.mark_ns() - begin) / 1e3, ll(static_cast<int64_t>(batch.step)),
        ll(static_cast<int64_t>(batch.rows.size())), ll(prefills), ll(static_cast<int64_t>(batch.tokens.size())),
        ll(static_cast<int64_t>(batch.copies.size())));
  int64_t at = begin;
  for (int part = 0; part < StepClock::kNumParts; ++part) {
    const int64_t spent = clock.part_ns(static_cast<StepClock::Part>(part));
    event(R"({"ph":"X","pid":1,"tid":1,"name":"%s","ts":%.3f,"dur":%.3f})", StepClock::kPartNames[part], micros(at),
          static_cast<double>(spent) / 1e3);
    at += spent;
  }
  const double hit_rate = stats.prompt_tokens == 0 ? 0
                                                   : 100.0 * static_cast<double>(stats.cached_tokens) /
                                                         static_cast<double>(stats.prompt_tokens);
  event(R"({"ph":"C","pid":1,"name":"scheduler","ts":%.3f,"args":{"running":%lld,"queue":%lld}})", micros(begin),
        ll(stats.running), ll(stats.queue));
  event(R"({"ph":"C","pid":1,"name":"KV blocks","ts":%.3f,"args":{"in use":%lld,"cached":%lld}})", micros(begin),
        ll(stats.blocks_total - stats.blocks_free - stats.blocks_cached), ll(stats.blocks_cached));
  event(R"({"ph":"C","pid":1,"name":"hit rate %%","ts":%.3f,"args":{"hit rate":%.2f}})", micros(begin), hit_rate);
}

void TraceWriter::request_queued(uint64_t sequence_id, std::string_view rid, int64_t submitted_ns,
                                 int64_t prompt_tokens) {
  const std::string name = json_text(rid);
  const auto id = static_cast<unsigned long long>(sequence_id);
  event(R"({"ph":"b","cat":"request","pid":1,"tid":0,"id":%llu,"name":"%s","ts":%.3f,"args":{"prompt_tokens":%lld}})",
        id, name.c_str(), micros(submitted_ns), ll(prompt_tokens));
  event(R"({"ph":"b","cat":"request","pid":1,"tid":0,"id":%llu,"name":"queued","ts":%.3f})", id, micros(submitted_ns));
}

void TraceWriter::request_admitted(uint64_t sequence_id, int64_t now_ns, int64_t cached_tokens) {
  const auto id = static_cast<unsigned long long>(sequence_id);
  event(R"({"ph":"e","cat":"request","pid":1,"tid":0,"id":%llu,"name":"queued","ts":%.3f})", id, micros(now_ns));
  event(R"({"ph":"b","cat":"request","pid":1,"tid":0,"id":%llu,"name":"prefill","ts":%.3f,"args":{"cached":%lld}})", id,
        micros(now_ns), ll(cached_tokens));
}

void TraceWriter::request_first_token(uint64_t sequence_id, int64_t now_ns) {
  const auto id = static_cast<unsigned long long>(sequence_id);
  event(R"({"ph":"e","cat":"request","pid":1,"tid":0,"id":%llu,"name":"prefill","ts":%.3f})", id, micros(now_ns));
  event(R"({"ph":"b","cat":"request","pid":1,"tid":0,"id":%llu,"name":"decode","ts":%.3f})", id, micros(now_ns));
}

void TraceWriter::request_ended(uint64_t sequence_id, std::string_view rid, int64_t now_ns, const SequenceEvent& end,
                                bool admitted, bool decoding) {
  static constexpr const char* kNames[] = {"length", "stop", "abort"};
  const auto id = static_cast<unsigned long long>(sequence_id);
  event(R"({"ph":"e","cat":"request","pid":1,"tid":0,"id":%llu,"name":"%s","ts":%.3f})", id,
        decoding   ? "decode"
        : admitted ? "prefill"
                   : "queued",
        micros(now_ns));
  event(R"({"ph":"e","cat":"request","pid":1,"tid":0,"id":%llu,"name":"%s","ts":%.3f,"args":{"finish_reason":"%s",)"
        R"("completion_tokens":%lld,"cached_tokens":%lld,"retractions":%lld}})",
        id, json_text(rid).c_str(), micros(now_ns), kNames[static_cast<int>(end.finish->type)],
        ll(end.completion_tokens), ll(end.cached_tokens), ll(end.num_retractions));
}

}  // namespace tokenmill
