/* SPDX-License-Identifier: Apache-2.0 */
/* The records of an earlier run. A file of --json, or any JSON that has such records in it, as the results of .ci/gpu: what is
 * looked for is objects without objects or arrays inside. */
#ifndef BENCH_GEMV_CUDA_COMPARE_H
#define BENCH_GEMV_CUDA_COMPARE_H
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

/* Values as they stand in the file: strings with their quotes. */
typedef std::map<std::string, std::string> gemv_old_record;

/* The end of the string that begins at `at`, or npos. */
static inline size_t gemv_string_end(const std::string &s, size_t at) {
    for (size_t i = at + 1; i < s.size(); ++i) {
        if (s[i] == '\\')
            ++i;
        else if (s[i] == '"')
            return i + 1;
    }
    return std::string::npos;
}

/* The flat object that begins at *at; false when there is none. *at moves behind what was read. */
static inline bool gemv_flat_object(const std::string &s, size_t *at, gemv_old_record *out) {
    const char *space = " \t\r\n";
    size_t i = *at + 1;
    out->clear();
    for (;;) {
        i = s.find_first_not_of(space, i);
        if (i == std::string::npos || s[i] != '"') break;
        const size_t end = gemv_string_end(s, i);
        if (end == std::string::npos) break;
        const std::string key = s.substr(i + 1, end - i - 2);
        i = s.find_first_not_of(space, end);
        if (i == std::string::npos || s[i] != ':') break;
        i = s.find_first_not_of(space, i + 1);
        if (i == std::string::npos || s[i] == '{' || s[i] == '[') break;
        const size_t stop = s[i] == '"' ? gemv_string_end(s, i) : s.find_first_of(",} \t\r\n", i);
        if (stop == std::string::npos) break;
        (*out)[key] = s.substr(i, stop - i);
        i = s.find_first_not_of(space, stop);
        if (i == std::string::npos || (s[i] != ',' && s[i] != '}')) break;
        *at = i + 1;
        if (s[i++] == '}') return true;
    }
    ++*at;
    return false;
}

/* False when the file cannot be read or holds no record. */
static inline bool gemv_load_records(const std::string &path, std::vector<gemv_old_record> *all) {
    std::ifstream f(path);
    std::stringstream text;
    text << f.rdbuf();
    const std::string s = text.str();
    gemv_old_record r;
    for (size_t at = s.find('{'); at != std::string::npos; at = s.find('{', at))
        if (gemv_flat_object(s, &at, &r) && r.count("n_tok") && r.count("format")) all->push_back(r);
    return f && !all->empty();
}
#endif
