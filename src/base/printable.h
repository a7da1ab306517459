// Text that came from outside, made fit for one line of a message.
#pragma once

#include <string>
#include <string_view>

namespace tokenmill {

// Control characters and bytes that are not valid UTF-8 become \xNN; all else stays.
std::string printable(std::string_view text);

// As printable(); of a text that is longer than bytes_max, the middle is left out.
std::string printable(std::string_view text, size_t bytes_max);

}  // namespace tokenmill
