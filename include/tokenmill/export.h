// What the shared library shows and what it keeps to itself; everything else is compiled with hidden visibility.
#pragma once

#if defined(__GNUC__)
#define TOKENMILL_API __attribute__((visibility("default")))
#define TOKENMILL_LOCAL __attribute__((visibility("hidden")))
#else
#define TOKENMILL_API
#define TOKENMILL_LOCAL
#endif
