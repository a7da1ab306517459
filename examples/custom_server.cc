// A server of one's own around the engine: Boost.Beast, C++20 coroutines, one thread for all connections.
//
//   custom_server MODEL_PATH [PORT]        listens on 127.0.0.1; PORT 0 (the default) takes a free one and prints it
//
//   POST /generate    {"text": "..." or "input_ids": [...], "sampling_params": {...}, "stream": false}
//   GET /stats        the engine's counters: requests, running, aborted, ...
//
// With "stream": true the answer comes as server-sent events, one a chunk, then `data: [DONE]`. A client that goes away
// ends its request. SIGINT and SIGTERM stop the server.
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tokenmill/engine.h"

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::use_awaitable;
using asio::ip::tcp;
using nlohmann::json;
using tokenmill::Output;

constexpr std::uint64_t kBodyBytesMax = 16 << 20;

// One request's outputs on their way from the engine's output thread to the server's. Lives as long as either needs it.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(asio::io_context& io) : io_(io), arrived_(io, asio::steady_timer::time_point::max()) {}

  // From any thread.
  void put(Output output) {
    asio::post(io_, [self = shared_from_this(), output = std::move(output)]() mutable {
      self->outputs_.push_back(std::move(output));
      self->arrived_.cancel();
    });
  }
  void client_left() {
    client_left_ = true;
    arrived_.cancel();
  }
  // nullopt: the client is gone.
  asio::awaitable<std::optional<Output>> next() {
    while (outputs_.empty() && !client_left_) {
      boost::system::error_code ignored;
      co_await arrived_.async_wait(asio::redirect_error(use_awaitable, ignored));
    }
    if (client_left_) co_return std::nullopt;
    Output output = std::move(outputs_.front());
    outputs_.pop_front();
    co_return output;
  }

 private:
  asio::io_context& io_;
  asio::steady_timer arrived_;
  std::deque<Output> outputs_;
  bool client_left_ = false;
};

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

class Server {
 public:
  Server(tokenmill::Engine& engine, asio::io_context& io) : engine_(engine), io_(io) {}

  asio::awaitable<void> listen(tcp::acceptor acceptor) {
    while (true) {
      tcp::socket socket = co_await acceptor.async_accept(use_awaitable);
      asio::co_spawn(io_, serve(std::make_shared<beast::tcp_stream>(std::move(socket))), asio::detached);
    }
  }

 private:
  using Client = std::shared_ptr<beast::tcp_stream>;

  // One connection: requests one after the other until the client closes it. An error of the connection ends it.
  asio::awaitable<void> serve(Client client) {
    try {
      beast::flat_buffer buffer;
      bool keep_alive = true;
      while (keep_alive) {
        http::request_parser<http::string_body> parser;
        parser.body_limit(kBodyBytesMax);
        co_await http::async_read(*client, buffer, parser, use_awaitable);
        const http::request<http::string_body>& request = parser.get();
        keep_alive = request.keep_alive();
        if (request.method() == http::verb::get && request.target() == "/stats") {
          const json stats = engine_.stats();
          co_await answer(client, http::status::ok, stats, keep_alive);
        } else if (request.method() == http::verb::post && request.target() == "/generate") {
          keep_alive = co_await generate(client, request.body(), keep_alive);
        } else {
          const json error = error_json("there is POST /generate and GET /stats");
          co_await answer(client, http::status::not_found, error, keep_alive);
        }
      }
    } catch (const std::exception&) {
    }
  }

  // False: the connection is of no more use.
  asio::awaitable<bool> generate(Client client, const std::string& body, bool keep_alive) {
    auto mailbox = std::make_shared<Mailbox>(io_);
    std::string rid, problem;
    bool stream = false;
    try {
      tokenmill::Request request = parse(body);
      stream = request.stream;
      rid = engine_.submit(std::move(request), [mailbox](Output&& output) {
        mailbox->put(std::move(output));
        return true;
      });
    } catch (const std::exception& error) {
      problem = error.what();  // a coroutine cannot wait inside a handler
    }
    if (!problem.empty()) {
      const json error = error_json(problem);
      co_await answer(client, http::status::bad_request, error, keep_alive);
      co_return keep_alive;
    }
    asio::co_spawn(io_, watch(client, mailbox), asio::detached);
    bool alive = false;
    try {
      if (stream) {
        alive = co_await send_events(client, *mailbox);
      } else {
        alive = co_await send_whole(client, *mailbox, keep_alive);
      }
    } catch (const std::exception&) {
    }
    if (!alive) engine_.abort(rid);
    client->socket().cancel();  // the watch
    if (stream) keep_alive = false;
    co_return alive ? keep_alive : false;
  }

  static tokenmill::Request parse(const std::string& body) {
    const json object = json::parse(body);
    tokenmill::Request request;
    if (object.contains("text")) request.prompt = object["text"].get<std::string>();
    if (object.contains("input_ids")) request.input_ids = object["input_ids"].get<std::vector<std::int32_t>>();
    const json params = object.value("sampling_params", json::object());
    for (const auto& [name, value] : params.items()) {
      tokenmill::set_sampling_param(request.sampling_params, name, value.dump());
    }
    if (request.sampling_params.n != 1) throw std::invalid_argument("n must be 1 here; send more requests instead.");
    request.stream = object.value("stream", false);
    return request;
  }

  // Waits until the client sends more, which is left for later, or goes away.
  static asio::awaitable<void> watch(Client client, std::shared_ptr<Mailbox> mailbox) {
    boost::system::error_code error;
    co_await client->socket().async_wait(tcp::socket::wait_read, asio::redirect_error(use_awaitable, error));
    if (error) co_return;
    char byte = 0;
    client->socket().non_blocking(true, error);
    const std::size_t size = client->socket().receive(asio::buffer(&byte, 1), tcp::socket::message_peek, error);
    if (size == 0 && error != asio::error::would_block) mailbox->client_left();
  }

  asio::awaitable<bool> send_whole(Client client, Mailbox& mailbox, bool keep_alive) {
    const std::optional<Output> output = co_await mailbox.next();
    if (!output) co_return false;
    const json result = json::parse(tokenmill::to_json(*output));
    co_await answer(client, http::status::ok, result, keep_alive);
    co_return true;
  }

  asio::awaitable<bool> send_events(Client client, Mailbox& mailbox) {
    http::response<http::empty_body> head(http::status::ok, 11);
    head.set(http::field::content_type, "text/event-stream");
    head.set(http::field::cache_control, "no-cache");
    head.keep_alive(false);
    head.chunked(true);
    http::response_serializer<http::empty_body> serializer(head);
    co_await http::async_write_header(*client, serializer, use_awaitable);
    for (bool last = false; !last;) {
      const std::optional<Output> output = co_await mailbox.next();
      if (!output) co_return false;
      last = output->finished();
      const std::string event = "data: " + tokenmill::to_json(*output) + "\n\n" + (last ? "data: [DONE]\n\n" : "");
      co_await asio::async_write(*client, http::make_chunk(asio::buffer(event)), use_awaitable);
    }
    co_await asio::async_write(*client, http::make_chunk_last(), use_awaitable);
    co_return true;
  }

  static json error_json(const std::string& message) { return {{"error", {{"message", message}}}}; }

  static asio::awaitable<void> answer(Client client, http::status status, const json& body, bool keep_alive) {
    http::response<http::string_body> response(status, 11);
    response.set(http::field::content_type, "application/json");
    response.keep_alive(keep_alive);
    response.body() = dump(body) + "\n";
    response.prepare_payload();
    co_await http::async_write(*client, response, use_awaitable);
  }

  tokenmill::Engine& engine_;
  asio::io_context& io_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: %s MODEL_PATH [PORT]\n", argv[0]);
    return 2;
  }
  try {
    asio::io_context io(1);  // outlives the engine, whose outputs come to it
    tokenmill::Engine engine({.model_path = argv[1]});
    const auto port = static_cast<unsigned short>(argc > 2 ? std::atoi(argv[2]) : 0);
    tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), port});
    std::printf("http://127.0.0.1:%d\n", acceptor.local_endpoint().port());
    std::fflush(stdout);
    asio::signal_set signals(io, SIGINT, SIGTERM);
    signals.async_wait([&io](const boost::system::error_code&, int) { io.stop(); });
    Server server(engine, io);
    asio::co_spawn(io, server.listen(std::move(acceptor)), asio::detached);
    io.run();
    engine.shutdown();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
