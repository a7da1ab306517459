// Chat templates against transformers' rendering, and what Jinja templates in the field rely on.

#include <gtest/gtest.h>

#include "text/chat_template.h"
#include "text_fixtures.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

using namespace testing;

void check_goldens(const std::string& folder) {
  const auto lines = read_lines(folder + "/goldens.jsonl");
  ASSERT_FALSE(lines.empty());
  int rendered = 0;
  for (const Json& line : lines) {
    ChatTemplateInput input;
    input.messages_json = line.at("messages").dump();
    input.kwargs_json = line.at("kwargs").dump();
    input.bos_token = line.at("bos_token").get<std::string>();
    input.eos_token = line.at("eos_token").get<std::string>();
    input.frozen_now = "2024-07-26 12:00:00";
    const std::string name = line.at("template").get<std::string>();
    const std::string source = read_file(folder + "/templates/" + name + ".jinja");
    const std::string where = name + " " + line.at("conv").get<std::string>();
    if (line.contains("text")) {
      std::string text;
      EXPECT_NO_THROW(text = render_chat_template(source, input)) << where;
      EXPECT_EQ(text, line.at("text").get<std::string>()) << where;
      ++rendered;
    } else if (line.value("check", "") == "must_fail") {
      EXPECT_THROW(render_chat_template(source, input), Error) << where;
    }
  }
  EXPECT_GT(rendered, 0);
}

TEST(ChatTemplateTest, FixtureGoldens) { check_goldens(data_path("chat")); }

TEST(ChatTemplateGoldenTest, AllTemplates) {
  const std::string shared = folder_from_env("TOKENMILL_TEST_SHARED");
  if (shared.empty()) GTEST_SKIP() << "not run: TOKENMILL_TEST_SHARED is unset";
  check_goldens(shared + "/chat");
}

std::string render(const std::string& source, const std::string& messages = "[]", const std::string& kwargs = "{}") {
  ChatTemplateInput input;
  input.messages_json = messages;
  input.kwargs_json = kwargs;
  input.frozen_now = "2024-07-26 12:00:00";
  return render_chat_template(source, input);
}

TEST(ChatTemplateTest, ToJsonIsPythonsDumps) {
  const std::string data = R"({"v": {"b": 1, "a": [true, null, 1.5, "é<\"\n"], "z": {}}})";
  EXPECT_EQ(render("{{ v | tojson }}", "[]", data), R"({"b": 1, "a": [true, null, 1.5, "é<\"\n"], "z": {}})");
  EXPECT_EQ(render("{{ v.a | tojson(indent=2) }}", "[]", data), "[\n  true,\n  null,\n  1.5,\n  \"é<\\\"\\n\"\n]");
  EXPECT_EQ(render("{{ v | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}", "[]", data),
            R"({"a":[true,null,1.5,"\u00e9<\"\n"],"b":1,"z":{}})");
  EXPECT_EQ(render("{{ [1e16, 1e-7, 2.0, -0.5] | tojson }}"), "[1e+16, 1e-07, 2.0, -0.5]");
}

TEST(ChatTemplateTest, WhitespaceLoopControlsAndMethods) {
  EXPECT_EQ(render("{% if true %}\n  a\n  {% endif %}\nb"), "  a\nb");
  EXPECT_EQ(render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}"
                   "{{ i }}{% endfor %}"),
            "023");
  EXPECT_EQ(render("{% set ns = namespace(n=0) %}{% for c in ' a,b '.strip().split(',') %}{% set ns.n = ns.n + 1 %}"
                   "{{ c.upper() }}{% endfor %}{{ ns.n }}"),
            "AB2");
  EXPECT_EQ(render("{{ x is defined }} {{ none is iterable }} {{ tools is none }} {{ true }} {{ undefined_name }}|"),
            "False False True True |");
  EXPECT_EQ(render("{% generation %}x{% endgeneration %}"), "x");
  EXPECT_EQ(render("{{ strftime_now('%d %b %Y %A') }}"), "26 Jul 2024 Friday");
}

TEST(ChatTemplateTest, ErrorsSayWhatHappened) {
  const auto message_of = [](const std::string& source, const std::string& messages) -> std::string {
    try {
      render(source, messages);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message_of("{{ raise_exception('roles must alternate') }}", "[]").find("roles must alternate"),
            std::string::npos);
  EXPECT_NE(message_of("a\n{% if %}", "[]").find("chat:2"), std::string::npos);
  EXPECT_NE(message_of("{{ x.y.z }}", "[]"), "");
  EXPECT_NE(message_of("x", "{").find("JSON"), std::string::npos);
  EXPECT_NE(message_of("x", "{}").find("list"), std::string::npos);
  EXPECT_NE(message_of("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "[]"), "")
      << "a template that does not end is stopped";
}

TEST(ChatTemplateTest, ContinueFinalMessageCutsAfterIt) {
  const std::string source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}";
  const std::string messages = R"([{"role": "user", "content": "q"}, {"role": "assistant", "content": "so "}])";
  EXPECT_EQ(render(source, messages, R"({"continue_final_message": true})"), "[user]q<end>[assistant]so ");
  EXPECT_THROW(render("nothing", messages, R"({"continue_final_message": true})"), Error);
}

}  // namespace
}  // namespace tokenmill
