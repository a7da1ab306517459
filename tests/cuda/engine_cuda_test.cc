// The engine on a CUDA device: the same answers as on the CPU, with and without graphs and overlap, alone and in a
// batch; and what becomes of it when a kernel fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <random>
#include <string>

#include "checkpoint/checkpoint.h"
#include "cuda/engine_cuda_testing.h"
#include "engine/engine_core.h"
#include "engine/engine_impl.h"
#include "engine/resolve_args.h"
#include "models/model.h"
#include "ops/backend_registry.h"
#include "runner/model_runner.h"
#include "tokenmill/engine.h"

namespace tokenmill::testing {
namespace {

TEST_F(EngineCuda, GreedyIsTheCpusInFloat32) {
  Engine cpu(args_for("stories260k", "cpu")), cuda(args_for("stories260k", "cuda"));
  const std::vector<Request> requests = random_requests(24, cpu.vocab_size(), 48, 3);
  const auto want = ids_of(cpu.generate(requests));
  EXPECT_EQ(ids_of(cuda.generate(requests)), want);
  EXPECT_EQ(alone(cuda, requests), want);
}

TEST_F(EngineCuda, GraphsChangeNothing) {
  for (const char* model : {"stories260k", "qwen3", "gemma3", "mistral-swa"}) {
    for (const char* dtype : {"float32", "bfloat16", "float16"}) {
      SCOPED_TRACE(std::string(model) + " " + dtype);
      ServerArgs with = args_for(model, "cuda", dtype), without = with;
      without.disable_cuda_graph = true;
      // Whole prompts in one step, so that only decodes differ; the sizes of decode steps are the same in both.
      Engine graphs(with), plain(without);
      const std::vector<Request> requests = random_requests(13, graphs.vocab_size(), 40, 5);
      EXPECT_EQ(ids_of(graphs.generate(requests)), ids_of(plain.generate(requests)));
      EXPECT_EQ(alone(graphs, requests), alone(plain, requests));
    }
  }
}

// Bit for bit, at every number of rows, with records that meet sequences they were not made for.
TEST_F(EngineCuda, RecordedStepsAreTheSteps) {
  for (const Packing packing : {Packing::kFloat32, Packing::kBFloat16}) {
    const auto checkpoint = Checkpoint::open((kTinyFolder / "llama-untied").string(), {});
    const auto make = [&](bool use_graphs) {
      auto backend = make_backend("cuda", CpuOptions{});
      auto model = load_model(*checkpoint, *backend, packing, nullptr);
      return std::make_unique<ModelRunner>(std::move(backend), std::move(model),
                                           RunnerOptions{.page_size = 16,
                                                         .num_blocks = 12 * 16,
                                                         .max_tokens_per_step = 64,
                                                         .max_rows = 12,
                                                         .graph_rows_max = 12,
                                                         .use_graphs = use_graphs});
    };
    const auto recorded = make(true), plain = make(false);
    recorded->prepare_graphs(4);
    std::mt19937 generator(3);
    std::vector<int32_t> lengths(12);
    for (uint64_t step = 1; step <= 250; ++step) {
      Batch batch;
      batch.step = step;
      const int32_t rows = 1 + static_cast<int32_t>(generator() % 12);
      for (int32_t row = 0; row < rows; ++row) {  // sequence `row` owns blocks [16 row, 16 row + 16)
        const int32_t length = ++lengths[static_cast<size_t>(row)];
        batch.rows.push_back({.sequence_id = static_cast<uint64_t>(row),
                              .q_len = 1,
                              .kv_len = length,
                              .token_begin = row,
                              .block_begin = static_cast<int32_t>(batch.block_tables.size()),
                              .num_blocks = (length + 15) / 16});
        for (int32_t block = 0; block < (length + 15) / 16; ++block) batch.block_tables.push_back(16 * row + block);
        batch.tokens.push_back(static_cast<int32_t>(generator() % 100));
        batch.positions.push_back(length - 1);
        batch.sampling.push_back({.token_index = row, .temperature = 0, .want_logprob = true, .top_logprobs = 3});
      }
      const auto run = [&](ModelRunner& runner) {
        ModelRunner::InFlight flight = runner.forward(batch);
        runner.sample(flight, batch.sampling);
        return runner.wait(std::move(flight)).sampled;
      };
      const auto a = run(*recorded), b = run(*plain);
      for (size_t row = 0; row < a.size(); ++row) {
        ASSERT_EQ(a[row].token, b[row].token) << step << " " << row;
        ASSERT_EQ(a[row].logprob, b[row].logprob);
        ASSERT_EQ(a[row].top_logprobs, b[row].top_logprobs);
      }
    }
    EXPECT_EQ(count_graph_launches(plain->backend()), 0);
    EXPECT_GT(count_graph_launches(recorded->backend()), 200);
    std::printf("[ graphs   ] %lld of 250 steps launched as graphs\n",
                static_cast<long long>(count_graph_launches(recorded->backend())));
  }
}

// A few steps of everything, for compute-sanitizer, under which a launch takes milliseconds.
TEST_F(EngineCuda, FewTokens) {
  for (const char* dtype : {"float32", "bfloat16", "float16"}) {
    for (const bool deterministic : {false, true}) {
      ServerArgs args = args_for("mistral-swa", "cuda", dtype);
      args.enable_deterministic_inference = deterministic;
      args.cuda_graph_max_bs = 2;
      args.chunked_prefill_size = 256;
      auto requests = random_requests(3, 100, 4, 23);
      requests[1].sampling_params.temperature = 1;
      requests[1].sampling_params.top_p = 0.9;
      requests[2].input_ids = std::vector<int32_t>(150, 7);
      Engine engine(args);
      for (const Output& output : engine.generate(requests)) EXPECT_EQ(output.output_ids.size(), 4u);
      EXPECT_EQ(engine.generate(requests.at(2)).at(0).output_ids.size(), 4u);
    }
  }
}

TEST_F(EngineCuda, SamplingDrawsWhatTheCpuDraws) {
  Engine cpu(args_for("stories260k", "cpu")), cuda(args_for("stories260k", "cuda"));
  std::vector<Request> requests = random_requests(16, cpu.vocab_size(), 32, 7);
  for (size_t i = 0; i < requests.size(); ++i) {
    SamplingParams& params = requests[i].sampling_params;
    params.temperature = 0.8;
    params.sampling_seed = i;
    if (i % 3 == 0) params.top_k = 20;
    if (i % 3 == 1) params.top_p = 0.9;
    if (i % 2 == 0) params.repetition_penalty = 1.2;
    if (i % 4 == 0) params.min_p = 0.05;
    requests[i].return_logprob = true;
    requests[i].top_logprobs_num = 2;
  }
  const auto a = cpu.generate(requests), b = cuda.generate(requests);
  // fp32 logits differ in their last bits, so that a draw at an edge may fall the other way: rare, and after it the
  // sequences are others.
  EXPECT_LE(count_differing(ids_of(a), ids_of(b)), 2);
}

TEST_F(EngineCuda, SharedPrefixesRetractionsAndChunks) {
  ServerArgs small = args_for("stories260k", "cuda");
  small.max_total_tokens = 1024;
  small.chunked_prefill_size = 32;
  Engine engine(small), cpu(args_for("stories260k", "cpu"));
  std::vector<Request> requests = random_requests(40, engine.vocab_size(), 60, 11);
  for (size_t i = 1; i < requests.size(); i += 2) {
    auto ids = *requests[i - 1].input_ids;
    ids.push_back(static_cast<int32_t>(i));
    requests[i].input_ids = ids;
  }
  EXPECT_EQ(ids_of(engine.generate(requests)), ids_of(cpu.generate(requests)));
  EXPECT_EQ(ids_of(engine.generate(requests)), ids_of(cpu.generate(requests)));  // over what the cache holds
}

// Not a promise, but a number to know: without deterministic inference the batch may change the last bits of logits.
TEST_F(EngineCuda, ShareOfPromptsThatTheBatchChanges) {
  Engine engine(args_for("llama-untied", "cuda", "bfloat16"));
  const auto requests = random_requests(200, engine.vocab_size(), 64, 17);
  const int64_t differing = count_differing(alone(engine, requests), ids_of(engine.generate(requests)));
  std::printf("[ batch    ] %lld of 200 greedy outputs differ between alone and batched (bfloat16, tiny model)\n",
              static_cast<long long>(differing));
}

TEST_F(EngineCuda, DeterministicInference) {
  for (const char* model : {"llama-untied", "gemma3", "mistral-swa"}) {
    for (const char* dtype : {"float32", "bfloat16", "float16"}) {
      SCOPED_TRACE(std::string(model) + " " + dtype);
      ServerArgs args = args_for(model, "cuda", dtype);
      args.enable_deterministic_inference = true;
      Engine engine(args);
      auto requests = random_requests(60, engine.vocab_size(), 48, 19);
      for (Request& request : requests) request.return_logprob = true;
      const auto batched = engine.generate(requests), cached = engine.generate(requests);
      args.chunked_prefill_size = 16;
      args.page_size = 32;
      args.disable_cuda_graph = true;
      args.disable_radix_cache = true;
      Engine chunked(args);
      for (size_t i = 0; i < requests.size(); ++i) {
        const Output one = chunked.generate(requests[i]).at(0);
        for (const Output* other : {&batched[i], &cached[i]}) {
          ASSERT_EQ(one.output_ids, other->output_ids) << i;
          ASSERT_EQ(one.meta_info.output_token_logprobs.size(), other->meta_info.output_token_logprobs.size());
          for (size_t t = 0; t < one.meta_info.output_token_logprobs.size(); ++t) {
            ASSERT_EQ(one.meta_info.output_token_logprobs[t].logprob, other->meta_info.output_token_logprobs[t].logprob)
                << i << " " << t;
          }
        }
      }
    }
  }
}

// A bit of everything that ends, masks, penalises or edits by the tokens before.
std::vector<Request> mixed_requests(int64_t vocab) {
  std::vector<Request> requests = random_requests(40, vocab, 50, 29);
  for (size_t i = 0; i < requests.size(); ++i) {
    SamplingParams& params = requests[i].sampling_params;
    requests[i].return_logprob = true;
    requests[i].top_logprobs_num = static_cast<int64_t>(i % 3);
    params.max_new_tokens = 1 + static_cast<int64_t>(i * 7 % 50);
    params.ignore_eos = false;
    if (i % 2 == 0) params.temperature = 0.9;
    if (i % 2 == 0) params.sampling_seed = i;
    if (i % 3 == 0) {
      for (int64_t id = 0; id < vocab; id += 9) params.stop_token_ids.push_back(id);
    }
    if (i % 5 == 0) params.min_new_tokens = *params.max_new_tokens / 2;
    if (i % 4 == 0) params.frequency_penalty = 0.7;
    if (i % 6 == 0) params.repetition_penalty = 1.3;
    if (i % 7 == 0) params.n = 3;
    if (i % 11 == 0) {
      params.custom_logit_processor =
          std::make_shared<const LogitProcessor>([](std::span<const int32_t> output_ids, std::span<float> logits) {
            if (!output_ids.empty()) logits[static_cast<size_t>(output_ids.back())] -= 5;
          });
    }
  }
  return requests;
}

// Bit for bit: what is launched before the step before is committed draws what it would draw after it.
TEST_F(EngineCuda, OverlapChangesNothing) {
  for (const char* model : {"llama-untied", "gemma3", "mistral-swa"}) {
    for (const char* dtype : {"float32", "bfloat16"}) {
      for (const int64_t pool : {1 << 14, 1 << 10}) {
        SCOPED_TRACE(std::string(model) + " " + dtype + " " + std::to_string(pool));
        ServerArgs args = args_for(model, "cuda", dtype);
        args.enable_deterministic_inference = true;
        args.max_total_tokens = pool;
        ServerArgs plain = args;
        plain.disable_overlap_schedule = true;
        Engine overlapped(args), one_by_one(plain);
        const auto requests = mixed_requests(overlapped.vocab_size());
        for (int round = 0; round < 2; ++round) {  // the second over what the cache holds
          const auto a = overlapped.generate(requests), b = one_by_one.generate(requests);
          ASSERT_EQ(a.size(), b.size());
          for (size_t i = 0; i < a.size(); ++i) {
            ASSERT_EQ(a[i].output_ids, b[i].output_ids) << i;
            ASSERT_EQ(a[i].meta_info.finish_reason->type, b[i].meta_info.finish_reason->type) << i;
            ASSERT_EQ(a[i].meta_info.output_token_logprobs.size(), b[i].meta_info.output_token_logprobs.size());
            for (size_t t = 0; t < a[i].meta_info.output_token_logprobs.size(); ++t) {
              ASSERT_EQ(a[i].meta_info.output_token_logprobs[t].logprob,
                        b[i].meta_info.output_token_logprobs[t].logprob)
                  << i << " " << t;
            }
          }
        }
        EXPECT_GT(overlapped.stats().at("finished"), 0);
      }
    }
  }
}

// A model that does something of its own after each forward pass.
class MeddledModel final : public Model {
 public:
  using Meddle = std::function<void(Backend&, Matrix hidden)>;
  MeddledModel(std::unique_ptr<Model> model, Meddle meddle) : model_(std::move(model)), meddle_(std::move(meddle)) {}
  const ModelConfig& config() const override { return model_->config(); }
  Packing packing() const override { return model_->packing(); }
  size_t weight_bytes() const override { return model_->weight_bytes(); }
  size_t workspace_bytes(int64_t tokens) const override { return model_->workspace_bytes(tokens); }
  void forward(ForwardContext& context, Matrix hidden) const override {
    model_->forward(context, hidden);
    meddle_(context.backend, hidden);
  }
  void final_norm(ForwardContext& context, Matrix hidden, Matrix out) const override {
    model_->final_norm(context, hidden, out);
  }
  void logits(ForwardContext& context, Matrix hidden, Matrix out) const override {
    model_->logits(context, hidden, out);
  }

 private:
  std::unique_ptr<Model> model_;
  Meddle meddle_;
};

TEST_F(EngineCuda, AStepThatCannotBeRecordedRunsAndIsTold) {
  ServerArgs args = args_for("stories260k", "cuda");
  args.log_level = "warning";
  const auto requests = random_requests(1, 100, 24, 31);
  const auto want = ids_of(Engine(args).generate(requests));
  args = resolve_server_args(args);
  const auto checkpoint = Checkpoint::open(args.model_path, {});
  EngineParts parts;
  parts.backend = make_backend("cuda", CpuOptions{});
  // Gathers by ids that are not the planned batch's, which no record can hold.
  const auto gather = [](Backend& backend, Matrix hidden) {
    const std::vector<int32_t> first(1);
    backend.gather_rows(hidden, first, hidden.slice_rows(0, 1));
  };
  parts.model =
      std::make_unique<MeddledModel>(load_model(*checkpoint, *parts.backend, Packing::kFloat32, nullptr), gather);
  std::mutex mutex;
  std::string log;
  parts.log_sink = [&](LogLevel, const std::string& line) {
    const std::lock_guard lock(mutex);
    log += line + "\n";
  };
  auto core = std::make_shared<EngineCore>(args, std::move(parts));
  core->start();
  Engine engine(std::make_shared<Engine::Impl>(core));
  EXPECT_EQ(ids_of(engine.generate(requests)), want);
  engine.shutdown();
  EXPECT_NE(log.find("could not be captured as a CUDA graph"), std::string::npos) << log;
}

bool stops(Engine& engine, const Request& request) {
  try {
    engine.generate(request);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.kind() == ErrorKind::kRuntime && std::string(error.what()).find("has stopped") != std::string::npos;
  }
  return false;
}

// What the process that had the fault ends with: 0 where all is as promised.
int run_into_a_fault() {
  std::atomic<bool> armed{false};
  ServerArgs args = args_for("stories260k", "cuda");
  args.disable_cuda_graph = true;  // a recorded step would not have the fault in it
  args = resolve_server_args(args);
  const auto checkpoint = Checkpoint::open(args.model_path, {});
  EngineParts parts;
  parts.backend = make_backend("cuda", CpuOptions{});
  // Once armed, a kernel reads memory that is nobody's.
  const auto fault = [&armed](Backend& backend, Matrix) {
    if (armed) backend.softcap({reinterpret_cast<void*>(uintptr_t{1} << 20), 1, 64, 64, DType::kF32}, 1);
  };
  parts.model =
      std::make_unique<MeddledModel>(load_model(*checkpoint, *parts.backend, Packing::kFloat32, nullptr), fault);
  auto core = std::make_shared<EngineCore>(args, std::move(parts));
  core->start();
  Engine engine(std::make_shared<Engine::Impl>(core));
  const Request request = random_requests(1, 100, 8, 29).at(0);
  if (engine.generate(request).at(0).output_ids.size() != 8) return 1;
  armed = true;
  if (!stops(engine, request)) return 2;
  if (!stops(engine, request)) return 3;
  engine.shutdown();
  if (Engine(args_for("stories260k", "cpu")).generate(request).at(0).output_ids.size() != 8) return 4;
  return 0;
}

using EngineCudaDeathTest = EngineCuda;

// In a process of its own: CUDA takes no more work from one in which a kernel has read what it must not.
TEST_F(EngineCudaDeathTest, AFailedKernelEndsTheEngineAndNotTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::_Exit(run_into_a_fault()), ::testing::ExitedWithCode(0), "illegal memory access");
}

}  // namespace
}  // namespace tokenmill::testing
