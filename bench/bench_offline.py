#!/usr/bin/env python3
"""Prints the benchmark table: `tokenmill bench` for each model, and the time from start to the first token.

  bench_offline.py [--tokenmill PROGRAM] [--json] [MODEL ...]

Without a MODEL it is the demo model. Shares are of the roofs measured in the same run; a matrix roof is what the widest
dot product that this processor and these weights allow can do, the read roof is memory bandwidth over the packed weights.
"""
import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def demo_model():
    result = subprocess.run([sys.executable, os.path.join(ROOT, "tools", "fetch_demo_model.py")], stdout=subprocess.PIPE,
                            text=True)
    if result.returncode != 0:
        sys.exit(result.returncode)
    return result.stdout.strip()


def first_token_seconds(program, model, extra, runs=5):
    """From the start of the process to the first byte of text, median; page cache warm after the first run."""
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        process = subprocess.Popen([program, "generate", "-m", model, "Hello, my name is", "--max-new-tokens", "8",
                                    "--temperature", "0", *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        select.select([process.stdout], [], [])
        os.read(process.stdout.fileno(), 1)
        seconds.append(time.perf_counter() - began)
        _, errors = process.communicate()
        if process.returncode != 0:
            sys.exit(errors.decode(errors="replace").strip() or f"{program} failed")
    return statistics.median(seconds[1:])


def measure(program, model, extra):
    result = subprocess.run([program, "bench", "-m", model, "--json", *extra], stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(result.returncode)
    report = json.loads(result.stdout)
    report["first_token_from_start_s"] = first_token_seconds(program, model, extra)
    return report


def percent(row, key):
    return f"{100 * row[key]:.1f} %" if key in row else "-"


def print_table(report):
    roofs = report["roofs"]
    print(f"\n{os.path.basename(report['model'].rstrip('/'))}: {report['architecture']}, "
          f"{report['parameters'] / 1e6:.1f} M parameters, mostly {report['weight_format']}, "
          f"{report['num_threads']} threads")
    print(f"backend: {report['server_info'].get('backend', '-')}")
    if roofs:
        widest = [f"{name} {roofs[key] / 1e9:,.0f}" for name, key in
                  (("fp32 FMA", "fma_flops"), ("AVX512_BF16", "bf16_dot_flops"), ("VNNI int8", "int8_dot_ops"),
                   ("AMX bf16", "amx_bf16_flops"), ("AMX int8", "amx_int8_ops")) if roofs[key]]
        print(f"roofs: read {roofs['read_bytes_per_s'] / 1e9:.1f} GB/s; G operations/s: {', '.join(widest)}; "
              f"matrix roof here: {roofs['matrix_roof']}")
    print(f"\n| {'run':<16} | {'tok/s':>9} | {'read roof':>9} | {'matrix roof':>11} | {'step p50 ms':>11} |")
    print(f"|{'-' * 18}|{'-' * 11}|{'-' * 11}|{'-' * 13}|{'-' * 13}|")
    prefill = report["prefill"]
    print(f"| {'prefill ' + str(prefill['tokens']):<16} | {prefill['tokens_per_s']:>9.1f} | {'-':>9} | "
          f"{percent(prefill, 'matrix_roof_share'):>11} | {1e3 * prefill['seconds']:>11.1f} |")
    for row in report["decode"]:
        print(f"| {'decode batch ' + str(row['batch_size']):<16} | {row['tokens_per_s']:>9.1f} | "
              f"{percent(row, 'read_roof_share'):>9} | {percent(row, 'matrix_roof_share'):>11} | "
              f"{1e3 * row['step_p50_s']:>11.2f} |")
    ratio = report["resident_bytes"] / report["packed_weight_bytes"]
    print(f"\nstart to first token {report['first_token_from_start_s']:.2f} s (load {report['load_s']:.2f} s); "
          f"resident {report['resident_bytes'] / 1e6:.0f} MB over {report['packed_weight_bytes'] / 1e6:.0f} MB of packed "
          f"weights = {ratio:.2f} (tokenizer and program included)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenmill", default=os.path.join(ROOT, "build", "bin", "tokenmill"), help="the program")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of tables")
    parser.add_argument("--dtype", default="auto", help="as tokenmill's --dtype")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_args()
    if not os.access(options.tokenmill, os.X_OK):
        sys.exit(f"{options.tokenmill} is not there; run make build")
    models = options.models or [demo_model()]
    extra = ["--dtype", options.dtype]
    reports = []
    for model in models:
        reports.append(measure(options.tokenmill, model, extra))
        if not options.json:
            if len(reports) == 1:
                print(f"{processor()}, {os.cpu_count()} processors")
            print_table(reports[-1])
    if options.json:
        json.dump(reports, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
