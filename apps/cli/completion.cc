// tokenmill completion: a completion script for bash, zsh or fish, made from the table of options.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "cli/command.h"
#include "cli/option_list.h"

namespace tokenmill::cli {
namespace {

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

// 'text' for a shell, whatever is in it.
std::string quoted(const std::string& text, const char* quote_inside) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += quote_inside;
    } else {
      out += c == '\n' ? ' ' : c;
    }
  }
  return out + "'";
}

std::vector<std::string> flags_of(const OptionInfo& option) {
  std::vector<std::string> flags;
  for (const std::string& name : option.short_names) flags.push_back("-" + name);
  for (const std::string& name : option.long_names) flags.push_back("--" + name);
  return flags;
}

// One case of bash's `case`: flags that take a value, or one of a few values.
std::string bash_values(const CommandInfo& command) {
  std::string text;
  for (const OptionInfo& option : command.options) {
    if (option.value.empty()) continue;
    for (const std::string& flag : flags_of(option)) {
      text += "    \"" + command.name + " " + flag + "\") ";
      text += option.choices.empty()
                  ? "return ;;\n"
                  : "COMPREPLY=($(compgen -W '" + join(option.choices) + "' -- \"$cur\")); return ;;\n";
    }
  }
  return text;
}

std::string bash_script(const CommandInfo& program, const std::vector<CommandInfo>& commands) {
  std::vector<std::string> names;
  std::string words, values;
  for (const CommandInfo& command : commands) {
    names.push_back(command.name);
    std::vector<std::string> flags;
    for (const OptionInfo& option : command.options) {
      for (const std::string& flag : flags_of(option)) flags.push_back(flag);
    }
    words += "    " + command.name + ") words='" + join(flags) + "' ;;\n";
    values += bash_values(command);
  }
  for (const OptionInfo& option : program.options) {
    for (const std::string& flag : flags_of(option)) names.push_back(flag);
  }
  return "# bash completion for tokenmill; an empty reply lets bash complete file names.\n"
         "_tokenmill() {\n"
         "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' words=''\n"
         "  COMPREPLY=()\n"
         "  [[ $COMP_CWORD -gt 1 ]] && command=${COMP_WORDS[1]}\n"
         "  case \"$command $prev\" in\n" +
         values +
         "  esac\n"
         "  case $command in\n"
         "    '') words='" +
         join(names) + "' ;;\n" + words +
         "  esac\n"
         "  [[ $cur == -* || -z $command ]] && COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
         "}\n"
         "complete -o default -F _tokenmill tokenmill\n";
}

// A spec of zsh's _arguments: brackets and colons are its own signs.
std::string zsh_spec(const OptionInfo& option, const std::string& flag) {
  std::string help;
  for (const char c : option.help) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') help += '\\';
    help += c;
  }
  std::string spec = flag + (option.value.empty() ? "" : flag.starts_with("--") ? "=" : "+") + "[" + help + "]";
  if (option.value.empty()) return spec;
  return spec + ":value:" + (option.choices.empty() ? "_files" : "(" + join(option.choices) + ")");
}

std::string zsh_script(const CommandInfo& program, const std::vector<CommandInfo>& commands) {
  const char* const inside = "'\\''";
  std::string text = "#compdef tokenmill\n_tokenmill() {\n  local -a commands\n  commands=(\n";
  for (const CommandInfo& command : commands) text += "    " + quoted(command.name + ":" + command.help, inside) + "\n";
  text += "  )\n  if (( CURRENT == 2 )); then\n    _describe -t commands command commands\n    _arguments";
  for (const OptionInfo& option : program.options) {
    for (const std::string& flag : flags_of(option)) text += " " + quoted(zsh_spec(option, flag), inside);
  }
  text += "\n    return\n  fi\n  local command=$words[2]\n  shift words\n  (( CURRENT-- ))\n  case $command in\n";
  for (const CommandInfo& command : commands) {
    text += "    " + command.name + ")\n      _arguments";
    for (const OptionInfo& option : command.options) {
      for (const std::string& flag : flags_of(option)) text += " \\\n        " + quoted(zsh_spec(option, flag), inside);
    }
    text += " \\\n        '*:file:_files'\n      ;;\n";
  }
  return text +
         "  esac\n}\n"
         "if [[ $funcstack[1] == _tokenmill ]]; then _tokenmill \"$@\"; else compdef _tokenmill tokenmill; fi\n";
}

std::string fish_script(const CommandInfo& program, const std::vector<CommandInfo>& commands) {
  const char* const inside = "\\'";
  std::string text = "# fish completion for tokenmill\n";
  const auto add = [&](const std::string& condition, const OptionInfo& option) {
    text += "complete -c tokenmill -n " + condition;
    for (const std::string& name : option.short_names) text += " -s " + name;
    for (const std::string& name : option.long_names) text += " -l " + name;
    if (!option.value.empty()) text += option.choices.empty() ? " -r" : " -x -a '" + join(option.choices) + "'";
    text += " -d " + quoted(option.help, inside) + "\n";
  };
  for (const OptionInfo& option : program.options) add("__fish_use_subcommand", option);
  for (const CommandInfo& command : commands) {
    text += "complete -c tokenmill -n __fish_use_subcommand -f -a " + command.name + " -d " +
            quoted(command.help, inside) + "\n";
    for (const OptionInfo& option : command.options) add("'__fish_seen_subcommand_from " + command.name + "'", option);
  }
  return text;
}

}  // namespace

Command add_completion(CLI::App& parent) {
  auto shell = std::make_shared<std::string>();
  CLI::App* app = parent.add_subcommand("completion", "Print a completion script: bash, zsh or fish");
  app->group("");  // made at build time and installed; few run it by hand
  app->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  return {app, [&parent, shell] {
            const CommandInfo program = describe(parent);
            const std::vector<CommandInfo> commands = describe_subcommands(parent);
            const std::string script = *shell == "bash"  ? bash_script(program, commands)
                                       : *shell == "zsh" ? zsh_script(program, commands)
                                                         : fish_script(program, commands);
            std::fputs(script.c_str(), stdout);
            return static_cast<int>(kExitOk);
          }};
}

}  // namespace tokenmill::cli
