#include "engine/trace_writer.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>

#include "engine/text_repr.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr size_t kBufferBytes = 1 << 18;

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
  buffer_.reserve(2 * kBufferBytes);
  buffer_ =
      "[\n"
      R"({"ph":"M","pid":1,"tid":0,"name":"process_name","args":{"name":"tokenmill"}},)"
      "\n"
      R"({"ph":"M","pid":1,"tid":1,"name":"thread_name","args":{"name":"steps"}})";
}

TraceWriter::~TraceWriter() {
  buffer_ += "\n]\n";
  flush();
}

void TraceWriter::flush() {
  bytes_ += static_cast<int64_t>(buffer_.size());
  std::fwrite(buffer_.data(), 1, buffer_.size(), file_.get());
  std::fflush(file_.get());
  buffer_.clear();
}

// Begins an event; the caller appends the rest of its object. False: the file is as long as it may be.
bool TraceWriter::begin(std::string_view object) {
  if (bytes_ >= kBytesMax) return false;
  if (buffer_.size() >= kBufferBytes) flush();
  buffer_ += ",\n";
  buffer_ += object;
  return true;
}

// Text and numbers in turn; printf would cost ten times as much.
TraceWriter& TraceWriter::operator<<(std::string_view text) {
  buffer_ += text;
  return *this;
}
TraceWriter& TraceWriter::operator<<(int64_t number) {
  char digits[24];
  buffer_.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
  return *this;
}
TraceWriter& TraceWriter::operator<<(Micros time) {
  const int64_t ns = std::max<int64_t>(0, time.ns);
  *this << ns / 1000;
  const int64_t rest = ns % 1000;
  const char fraction[4] = {'.', static_cast<char>('0' + rest / 100), static_cast<char>('0' + rest / 10 % 10),
                            static_cast<char>('0' + rest % 10)};
  buffer_.append(fraction, 4);
  return *this;
}

void TraceWriter::slice(std::string_view name, int64_t begin_ns, int64_t duration_ns) {
  if (!begin(R"({"ph":"X","pid":1,"tid":1,"name":")")) return;
  *this << name << R"(","ts":)" << at(begin_ns) << R"(,"dur":)" << Micros{duration_ns};
}

void TraceWriter::counter(std::string_view name, int64_t now_ns) {
  *this << R"({"ph":"C","pid":1,"name":")" << name << R"(","ts":)" << at(now_ns) << R"(,"args":{)";
}

void TraceWriter::step(const StepClock& clock, const Batch& batch, const SchedulerStats& stats) {
  if (bytes_ >= kBytesMax) return;
  const int64_t begin_ns = clock.step_begin_ns();
  int64_t prefills = 0;
  for (const BatchRow& row : batch.rows) prefills += row.q_len > 1 || row.kv_len == 1;
  slice("step", begin_ns, clock.mark_ns() - begin_ns);
  *this << R"(,"args":{"step":)" << static_cast<int64_t>(batch.step) << R"(,"rows":)"
        << static_cast<int64_t>(batch.rows.size()) << R"(,"prefills":)" << prefills << R"(,"tokens":)"
        << static_cast<int64_t>(batch.tokens.size()) << R"(,"copies":)" << static_cast<int64_t>(batch.copies.size())
        << "}}";
  int64_t at_ns = begin_ns;
  for (int part = 0; part < StepClock::kNumParts; ++part) {
    const int64_t spent = clock.part_ns(static_cast<StepClock::Part>(part));
    slice(StepClock::kPartNames[part], at_ns, spent);
    *this << "}";
    at_ns += spent;
  }
  *this << ",\n";
  counter("scheduler", begin_ns);
  *this << R"("running":)" << stats.running << R"(,"queue":)" << stats.queue << "}},\n";
  counter("KV blocks", begin_ns);
  *this << R"("in use":)" << stats.blocks_total - stats.blocks_free - stats.blocks_cached << R"(,"cached":)"
        << stats.blocks_cached << "}},\n";
  counter("hit rate %", begin_ns);
  *this << R"("hit rate":)" << (stats.prompt_tokens == 0 ? 0 : 100 * stats.cached_tokens / stats.prompt_tokens) << "}}";
}

// One end of a stage of a sample: `phase` b or e. The caller closes the object.
bool TraceWriter::stage(char phase, uint64_t sequence_id, std::string_view name, int64_t ns) {
  if (!begin(R"({"ph":")")) return false;
  *this << std::string_view(&phase, 1) << R"(","cat":"request","pid":1,"tid":0,"id":)"
        << static_cast<int64_t>(sequence_id) << R"(,"name":")" << name << R"(","ts":)" << at(ns);
  return true;
}

void TraceWriter::request_queued(uint64_t sequence_id, std::string_view rid, int64_t submitted_ns,
                                 int64_t prompt_tokens) {
  if (stage('b', sequence_id, json_text(rid), submitted_ns)) {
    *this << R"(,"args":{"prompt_tokens":)" << prompt_tokens << "}}";
  }
  if (stage('b', sequence_id, "queued", submitted_ns)) *this << "}";
}

void TraceWriter::request_admitted(uint64_t sequence_id, int64_t now_ns, int64_t cached_tokens) {
  if (stage('e', sequence_id, "queued", now_ns)) *this << "}";
  if (stage('b', sequence_id, "prefill", now_ns)) *this << R"(,"args":{"cached":)" << cached_tokens << "}}";
}

void TraceWriter::request_first_token(uint64_t sequence_id, int64_t now_ns) {
  if (stage('e', sequence_id, "prefill", now_ns)) *this << "}";
  if (stage('b', sequence_id, "decode", now_ns)) *this << "}";
}

void TraceWriter::request_ended(uint64_t sequence_id, std::string_view rid, int64_t now_ns, const SequenceEvent& end,
                                bool admitted, bool decoding) {
  static constexpr const char* kNames[] = {"length", "stop", "abort"};
  const std::string_view last = decoding ? "decode" : admitted ? "prefill" : "queued";
  if (stage('e', sequence_id, last, now_ns)) *this << "}";
  if (!stage('e', sequence_id, json_text(rid), now_ns)) return;
  *this << R"(,"args":{"finish_reason":")" << kNames[static_cast<int>(end.finish->type)] << R"(","completion_tokens":)"
        << end.completion_tokens << R"(,"cached_tokens":)" << end.cached_tokens << R"(,"retractions":)"
        << end.num_retractions << "}}";
}

}  // namespace tokenmill
