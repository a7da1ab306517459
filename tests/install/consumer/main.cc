// Every mode of the public API and every kind of error, as a program outside of the project uses them.
//
//   consumer MODEL_FOLDER      a model without tokenizer; prints "ok VERSION"
#include <coroutine>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <future>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tokenmill/engine.h"

namespace {

using Ids = std::vector<std::int32_t>;

static_assert(!std::is_copy_constructible_v<tokenmill::Engine>);
static_assert(!std::is_copy_constructible_v<tokenmill::Stream>);
static_assert(std::is_nothrow_move_constructible_v<tokenmill::Stream>);
static_assert(std::is_nothrow_destructible_v<tokenmill::Stream>);
static_assert(std::is_nothrow_destructible_v<tokenmill::Engine>);

void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(std::string("not so: ") + what);
}

tokenmill::Request request() {
  return {.input_ids = Ids{1, 2, 3}, .sampling_params = {.max_new_tokens = 12, .temperature = 0, .ignore_eos = true}};
}

Ids by_range_for(tokenmill::Engine& engine) {
  Ids ids;
  for (const tokenmill::Output& chunk : engine.generate_stream(request())) {
    ids.insert(ids.end(), chunk.output_ids.begin(), chunk.output_ids.end());
  }
  return ids;
}

Ids by_callback(tokenmill::Engine& engine) {
  std::promise<Ids> promise;
  engine.submit(request(), [&](tokenmill::Output&& output) {
    promise.set_value(std::move(output.output_ids));
    return true;
  });
  return promise.get_future().get();
}

struct Job {
  struct promise_type {
    std::promise<Ids> result;
    Job get_return_object() { return {result.get_future()}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_value(Ids ids) { result.set_value(std::move(ids)); }
    void unhandled_exception() { result.set_exception(std::current_exception()); }
  };
  std::future<Ids> ids;
};

Job by_co_await(tokenmill::Stream stream) {
  Ids ids;
  while (const auto chunk = co_await stream.next_async()) {
    ids.insert(ids.end(), chunk->output_ids.begin(), chunk->output_ids.end());
  }
  co_return ids;
}

template <class Call>
void require_error(tokenmill::ErrorKind kind, const std::string& text, Call call) {
  try {
    call();
  } catch (const tokenmill::Error& error) {
    require(error.kind() == kind, error.what());
    require(std::string(error.what()).find(text) != std::string::npos, error.what());
    return;
  }
  throw std::logic_error("no error that names " + text);
}

void errors(tokenmill::Engine& engine) {
  using tokenmill::ErrorKind;
  require_error(ErrorKind::kValue, "no/such/model",
                [] { tokenmill::Engine({.model_path = "no/such/model", .log_level = "error"}); });
  require_error(ErrorKind::kValue, "top_p must be in (0, 1], got 1.5.", [&] {
    auto bad = request();
    bad.sampling_params.top_p = 1.5;
    (void)engine.generate(bad);
  });
  // Across the library's border an Error is a std::runtime_error too.
  try {
    (void)engine.generate(tokenmill::Request{.prompt = "text"});
    throw std::logic_error("no error");
  } catch (const std::runtime_error& error) {
    require(std::string(error.what()).find("skip_tokenizer_init") != std::string::npos, error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    tokenmill::Engine engine({.model_path = argv[1],
                              .skip_tokenizer_init = true,
                              .max_total_tokens = 2048,
                              .log_level = "error",
                              .num_threads = 1});
    const Ids expected = engine.generate(request()).at(0).output_ids;
    require(expected.size() == 12, "12 ids");
    require(engine.generate_async({request(), request()}).get().at(1).output_ids == expected, "future");
    require(by_range_for(engine) == expected, "range-for");
    require(by_callback(engine) == expected, "callback");
    require(by_co_await(engine.generate_stream(request())).ids.get() == expected, "co_await");
    errors(engine);
    require(tokenmill::server_args_fields().size() > 50, "the table of options");
    engine.shutdown();
    require_error(tokenmill::ErrorKind::kRuntime, "shut down", [&] { (void)engine.generate(request()); });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::printf("ok %s\n", tokenmill::version().c_str());
  return 0;
}
