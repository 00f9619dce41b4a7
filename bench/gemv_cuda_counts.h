/* SPDX-License-Identifier: Apache-2.0 */
/* In the simulator (tests/gpusim) counts stand in for times. Its library writes a line of counts per launch to the file that
 * GPUSIM_JSON names: what one run added to it is read back and summed. */
#ifndef BENCH_GEMV_CUDA_COUNTS_H
#define BENCH_GEMV_CUDA_COUNTS_H
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>

class gemv_counts {
  public:
    /* Before the first call of the CUDA runtime. Where the device turns out to be a real one, nothing is written. */
    gemv_counts() {
        if (const char *given = getenv("GPUSIM_JSON")) {
            path_ = given;
            return;
        }
        const char *folder = getenv("TMPDIR");
        path_ = std::string(folder && *folder ? folder : P_tmpdir) + "/bench_gemv.XXXXXX";
        const int file = mkstemp(&path_[0]);
        if (file < 0 || close(file) != 0) {
            fprintf(stderr, "cannot write %s\n", path_.c_str());
            exit(1);
        }
        setenv("GPUSIM_JSON", path_.c_str(), 1);
        temporary_ = true;
    }
    ~gemv_counts() {
        if (temporary_) unlink(path_.c_str());
    }
    gemv_counts(const gemv_counts &) = delete;
    gemv_counts &operator=(const gemv_counts &) = delete;

    static bool simulated(const char *device_name) { return strncmp(device_name, "gpusim", 6) == 0; }

    void begin() {
        std::ifstream f(path_, std::ios::ate);
        from_ = f ? (std::streamoff)f.tellg() : 0;
    }
    /* The counts of the launches since begin(), summed; "launches" is how many. */
    std::map<std::string, double> end() const {
        static const char *const keys[] = {
            "warp_ins",        "ld_bytes",        "st_bytes",        "bulk_bytes",      "ld_sectors", "st_sectors",
            "shared_ld_waves", "shared_ld_ideal", "shared_st_waves", "shared_st_ideal", "mma",        "barriers"};
        std::map<std::string, double> sums;
        std::ifstream f(path_);
        f.seekg(from_);
        for (std::string line; std::getline(f, line);) {
            sums["launches"] += 1;
            for (const char *key : keys) {
                const std::string quoted = "\"" + std::string(key) + "\": ";
                const size_t at = line.find(quoted);
                if (at != std::string::npos) sums[key] += atof(line.c_str() + at + quoted.size());
            }
        }
        return sums;
    }

  private:
    std::string path_;
    std::streamoff from_ = 0;
    bool temporary_ = false;
};
#endif
