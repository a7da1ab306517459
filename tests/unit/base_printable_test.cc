#include "base/printable.h"

#include <gtest/gtest.h>

namespace tokenmill {
namespace {

TEST(Printable, KeepsTextAndWellFormedUtf8) {
  EXPECT_EQ(printable("token_embd.weight"), "token_embd.weight");
  EXPECT_EQ(printable("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"), "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
}

TEST(Printable, EscapesControlCharactersAndMalformedBytes) {
  EXPECT_EQ(printable("a\nb\x7f"), "a\\x0ab\\x7f");
  EXPECT_EQ(printable("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");           // overlong
  EXPECT_EQ(printable("\xe2\x82"), "\\xe2\\x82");           // cut short
  EXPECT_EQ(printable(std::string_view("\0x", 2)), "\\x00x");
}

TEST(Printable, LeavesOutTheMiddleOfLongText) {
  EXPECT_EQ(printable("0123456789", 10), "0123456789");
  EXPECT_EQ(printable("key '" + std::string(1000, 'x') + "' twice", 20), "key 'xxxxx [...] xxx' twice");
}

}  // namespace
}  // namespace tokenmill
