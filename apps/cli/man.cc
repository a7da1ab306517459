// tokenmill man: the manual page tokenmill(1), made from the table of options.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "cli/command.h"
#include "cli/option_list.h"
#include "tokenmill/engine.h"

namespace tokenmill::cli {
namespace {

// Text that roff shows as it stands.
std::string plain(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) {
      out += "\\&";
      out += c;
    } else {
      out += c;
    }
  }
  return out;
}

std::string option_entry(const OptionInfo& option) {
  std::string names;
  const auto add = [&](const std::string& flag) {
    names += (names.empty() ? "" : ", ") + std::string("\\fB") + plain(flag) + "\\fR";
  };
  for (const std::string& name : option.short_names) add("-" + name);
  for (const std::string& name : option.long_names) add("--" + name);
  std::string value = option.value;
  if (!option.choices.empty()) {
    value.clear();
    for (const std::string& choice : option.choices) value += (value.empty() ? "" : "|") + choice;
  }
  if (!value.empty()) names += " \\fI" + plain(value) + "\\fR";
  return ".TP\n" + names + "\n" + plain(option.help) + "\n";
}

std::string command_section(const CommandInfo& command) {
  std::string text = ".SS \"tokenmill " + command.name;
  for (const OptionInfo& positional : command.positionals) text += " [" + positional.long_names.front() + "]";
  text += " [options]\"\n" + plain(command.help) + ".\n";
  for (const OptionInfo& positional : command.positionals) {
    text += ".TP\n\\fI" + plain(positional.long_names.front()) + "\\fR\n" + plain(positional.help) + "\n";
  }
  std::string group;
  for (const OptionInfo& option : command.options) {
    if (option.group != group) {
      group = option.group;
      text += ".PP\n\\fI" + plain(group) + ":\\fR\n";
    }
    text += option_entry(option);
  }
  return text;
}

std::string page(const CLI::App& app) {
  std::string text = ".TH TOKENMILL 1 \"\" \"tokenmill " + version() +
                     "\" \"User Commands\"\n"
                     ".SH NAME\ntokenmill \\- run language models from the command line\n"
                     ".SH SYNOPSIS\n.B tokenmill\n\\fIcommand\\fR [\\fIoptions\\fR]\n"
                     ".SH DESCRIPTION\n"
                     "Loads a language model from a Hugging Face folder or a GGUF file and generates text with it, "
                     "without any other process.\nResults go to standard output, everything else to standard "
                     "error.\nA flag without value may be negated: \\fB\\-\\-no\\-\\fIname\\fR.\n"
                     ".SH COMMANDS\n";
  for (const CommandInfo& command : describe_subcommands(app)) text += command_section(command);
  return text +
         ".SH EXIT STATUS\n0 for success, 1 for a failure, 2 for wrong usage, 130 when interrupted.\n"
         ".SH EXAMPLES\n.nf\n"
         "tokenmill generate \\-m model.gguf \"The capital of France is\" \\-\\-temperature 0\n"
         "tokenmill generate \\-m model.gguf \\-\\-input prompts.jsonl \\-\\-output answers.jsonl\n"
         "tokenmill info model.gguf\n.fi\n";
}

}  // namespace

Command add_man(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("man", "Print the manual page in roff");
  app->group("");  // made at build time and installed
  return {app, [&parent] {
            std::fputs(page(parent).c_str(), stdout);
            return static_cast<int>(kExitOk);
          }};
}

}  // namespace tokenmill::cli
