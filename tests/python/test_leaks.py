"""leaks.py finds the package's own leaks in a report, and no one else's."""
import leaks

REPORT = """
=================================================================
==11735==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 352 byte(s) in 11 object(s) allocated from:
    #0 in __interceptor_malloc ../../src/libsanitizer/asan/asan_malloc_linux.cpp:69 (libasan.so+0xb89cf)
    #1 in PyThread_allocate_lock Python/thread_pthread.h:385 (libpython3.11.so.1.0+0x2a9264)
    #2 in operator() ../bindings/python/src/module.cc:203 (_native.cpython-311-x86_64-linux-gnu.so+0x51d7ac4)

Direct leak of 208 byte(s) in 1 object(s) allocated from:
    #0 in operator new(unsigned long) ../../src/libsanitizer/asan/asan_new_delete.cpp:95 (libasan.so+0xb94c8)
    #1 in std::string::reserve(unsigned long) (libstdc++.so.6+0x14f000)
    #2 in tokenmill::python::NativeEngine::NativeEngine(tokenmill::ServerArgs) native_engine.cc:115 (_native.abi3.so+0x5)

SUMMARY: AddressSanitizer: 560 byte(s) leaked in 12 allocation(s).
"""


def test_of_the_package():
    (leak,) = leaks.of_the_package(REPORT)
    assert leak.startswith("Direct leak of 208 byte(s)")
    assert leaks.of_the_package("") == []
