/* SPDX-License-Identifier: Apache-2.0 */
/* Characters for the tokenizer: UTF-8, NFC, byte letters, and what the reference's Unicode tables have beyond PCRE2's.
 *
 * The reference (`tokenizers` 0.23) matches patterns with Oniguruma's Unicode 16 tables and normalizes with tables of
 * about Unicode 9. The differences to PCRE2 10.42 (Unicode 14) and utf8proc 2.8 (Unicode 15) were found by comparing
 * every code point; the tables below undo them. With newer libraries the rows are merely redundant. */
#include <utf8proc.h>

#include "tokenizer_impl.h"

/* ---- buffers ---- */

rq_status rq_tok_buf_add(rq_tok_buf *b, const char *text, int64_t n) {
    if (n > b->cap - b->n) {
        int64_t cap = 2 * b->cap + n + 64;
        char *data = realloc(b->data, (size_t)cap);
        if (!data) return rq_fail(RQ_ERR_NOMEM, "out of memory: %lld bytes were asked for", (long long)cap);
        b->data = data;
        b->cap = cap;
    }
    if (n > 0) memcpy(b->data + b->n, text, (size_t)n);
    b->n += n;
    return RQ_OK;
}

rq_status rq_tok_buf_add_str(rq_tok_buf *b, const char *text) { return rq_tok_buf_add(b, text, (int64_t)strlen(text)); }

/* ---- UTF-8 ---- */

uint32_t rq_tok_char_at(const char *p, int *n_bytes) {
    const unsigned char *u = (const unsigned char *)p;
    if (u[0] < 0x80) {
        *n_bytes = 1;
        return u[0];
    }
    if (u[0] < 0xe0) {
        *n_bytes = 2;
        return (uint32_t)(u[0] & 0x1f) << 6 | (u[1] & 0x3fu);
    }
    if (u[0] < 0xf0) {
        *n_bytes = 3;
        return (uint32_t)(u[0] & 0x0f) << 12 | (u[1] & 0x3fu) << 6 | (u[2] & 0x3fu);
    }
    *n_bytes = 4;
    return (uint32_t)(u[0] & 0x07) << 18 | (u[1] & 0x3fu) << 12 | (u[2] & 0x3fu) << 6 | (u[3] & 0x3fu);
}

int rq_tok_char_put(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

int64_t rq_tok_utf8_bad_offset(const char *text, int64_t n) {
    const unsigned char *u = (const unsigned char *)text;
    int64_t i = 0;
    while (i < n) {
        if (u[i] < 0x80) {
            ++i;
            continue;
        }
        int len = u[i] >= 0xc2 && u[i] < 0xe0   ? 2
                  : u[i] >= 0xe0 && u[i] < 0xf0 ? 3
                  : u[i] >= 0xf0 && u[i] < 0xf5 ? 4
                                                : 0;
        if (len == 0 || n - i < len) return i;
        for (int k = 1; k < len; ++k) {
            if ((u[i + k] & 0xc0) != 0x80) return i;
        }
        int used;
        uint32_t c = rq_tok_char_at(text + i, &used);
        if ((len == 3 && (c < 0x800 || (c >= 0xd800 && c < 0xe000))) || (len == 4 && (c < 0x10000 || c > 0x10ffff))) {
            return i;
        }
        i += len;
    }
    return -1;
}

/* ---- classes ---- */

bool rq_tok_is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Assigned (or given another category) in Unicode 15.0, 15.1 and 16.0. */
static const struct {
    uint32_t first, last;
    char category[3];
} newer[] = {{0x0897, 0x0897, "Mn"},   {0x0cf3, 0x0cf3, "Mc"},   {0x0ece, 0x0ece, "Mn"},   {0x1b4e, 0x1b4f, "Po"},
             {0x1b7f, 0x1b7f, "Po"},   {0x1c89, 0x1c89, "Lu"},   {0x1c8a, 0x1c8a, "Ll"},   {0x2427, 0x2429, "So"},
             {0x2ffc, 0x2fff, "So"},   {0x31e4, 0x31e5, "So"},   {0x31ef, 0x31ef, "So"},   {0xa7cb, 0xa7cc, "Lu"},
             {0xa7cd, 0xa7cd, "Ll"},   {0xa7da, 0xa7da, "Lu"},   {0xa7db, 0xa7db, "Ll"},   {0xa7dc, 0xa7dc, "Lu"},
             {0x105c0, 0x105f3, "Lo"}, {0x10d40, 0x10d49, "Nd"}, {0x10d4a, 0x10d4d, "Lo"}, {0x10d4e, 0x10d4e, "Lm"},
             {0x10d4f, 0x10d4f, "Lo"}, {0x10d50, 0x10d65, "Lu"}, {0x10d69, 0x10d6d, "Mn"}, {0x10d6e, 0x10d6e, "Pd"},
             {0x10d6f, 0x10d6f, "Lm"}, {0x10d70, 0x10d85, "Ll"}, {0x10d8e, 0x10d8f, "Sm"}, {0x10ec2, 0x10ec4, "Lo"},
             {0x10efc, 0x10eff, "Mn"}, {0x1123f, 0x11240, "Lo"}, {0x11241, 0x11241, "Mn"}, {0x11380, 0x11389, "Lo"},
             {0x1138b, 0x1138b, "Lo"}, {0x1138e, 0x1138e, "Lo"}, {0x11390, 0x113b5, "Lo"}, {0x113b7, 0x113b7, "Lo"},
             {0x113b8, 0x113ba, "Mc"}, {0x113bb, 0x113c0, "Mn"}, {0x113c2, 0x113c2, "Mc"}, {0x113c5, 0x113c5, "Mc"},
             {0x113c7, 0x113ca, "Mc"}, {0x113cc, 0x113cd, "Mc"}, {0x113ce, 0x113ce, "Mn"}, {0x113cf, 0x113cf, "Mc"},
             {0x113d0, 0x113d0, "Mn"}, {0x113d1, 0x113d1, "Lo"}, {0x113d2, 0x113d2, "Mn"}, {0x113d3, 0x113d3, "Lo"},
             {0x113d4, 0x113d5, "Po"}, {0x113d7, 0x113d8, "Po"}, {0x113e1, 0x113e2, "Mn"}, {0x116d0, 0x116e3, "Nd"},
             {0x1171e, 0x1171e, "Mc"}, {0x11b00, 0x11b09, "Po"}, {0x11bc0, 0x11be0, "Lo"}, {0x11be1, 0x11be1, "Po"},
             {0x11bf0, 0x11bf9, "Nd"}, {0x11f00, 0x11f01, "Mn"}, {0x11f02, 0x11f02, "Lo"}, {0x11f03, 0x11f03, "Mc"},
             {0x11f04, 0x11f10, "Lo"}, {0x11f12, 0x11f33, "Lo"}, {0x11f34, 0x11f35, "Mc"}, {0x11f36, 0x11f3a, "Mn"},
             {0x11f3e, 0x11f3f, "Mc"}, {0x11f40, 0x11f40, "Mn"}, {0x11f41, 0x11f41, "Mc"}, {0x11f42, 0x11f42, "Mn"},
             {0x11f43, 0x11f4f, "Po"}, {0x11f50, 0x11f59, "Nd"}, {0x11f5a, 0x11f5a, "Mn"}, {0x1342f, 0x1342f, "Lo"},
             {0x13439, 0x1343f, "Cf"}, {0x13440, 0x13440, "Mn"}, {0x13441, 0x13446, "Lo"}, {0x13447, 0x13455, "Mn"},
             {0x13460, 0x143fa, "Lo"}, {0x16100, 0x1611d, "Lo"}, {0x1611e, 0x16129, "Mn"}, {0x1612a, 0x1612c, "Mc"},
             {0x1612d, 0x1612f, "Mn"}, {0x16130, 0x16139, "Nd"}, {0x16d40, 0x16d42, "Lm"}, {0x16d43, 0x16d6a, "Lo"},
             {0x16d6b, 0x16d6c, "Lm"}, {0x16d6d, 0x16d6f, "Po"}, {0x16d70, 0x16d79, "Nd"}, {0x18cff, 0x18cff, "Lo"},
             {0x1b132, 0x1b132, "Lo"}, {0x1b155, 0x1b155, "Lo"}, {0x1cc00, 0x1ccef, "So"}, {0x1ccf0, 0x1ccf9, "Nd"},
             {0x1cd00, 0x1ceb3, "So"}, {0x1d2c0, 0x1d2d3, "No"}, {0x1df25, 0x1df2a, "Ll"}, {0x1e030, 0x1e06d, "Lm"},
             {0x1e08f, 0x1e08f, "Mn"}, {0x1e4d0, 0x1e4ea, "Lo"}, {0x1e4eb, 0x1e4eb, "Lm"}, {0x1e4ec, 0x1e4ef, "Mn"},
             {0x1e4f0, 0x1e4f9, "Nd"}, {0x1e5d0, 0x1e5ed, "Lo"}, {0x1e5ee, 0x1e5ef, "Mn"}, {0x1e5f0, 0x1e5f0, "Lo"},
             {0x1e5f1, 0x1e5fa, "Nd"}, {0x1e5ff, 0x1e5ff, "Po"}, {0x1f6dc, 0x1f6dc, "So"}, {0x1f774, 0x1f776, "So"},
             {0x1f77b, 0x1f77f, "So"}, {0x1f7d9, 0x1f7d9, "So"}, {0x1f8b2, 0x1f8bb, "So"}, {0x1f8c0, 0x1f8c1, "So"},
             {0x1fa75, 0x1fa77, "So"}, {0x1fa87, 0x1fa89, "So"}, {0x1fa8f, 0x1fa8f, "So"}, {0x1faad, 0x1faaf, "So"},
             {0x1fabb, 0x1fabf, "So"}, {0x1fac6, 0x1fac6, "So"}, {0x1face, 0x1facf, "So"}, {0x1fada, 0x1fadc, "So"},
             {0x1fadf, 0x1fadf, "So"}, {0x1fae8, 0x1fae9, "So"}, {0x1faf7, 0x1faf8, "So"}, {0x1fbcb, 0x1fbef, "So"},
             {0x2b739, 0x2b739, "Lo"}, {0x2ebf0, 0x2ee5d, "Lo"}, {0x31350, 0x323af, "Lo"}};

bool rq_tok_is_word(uint32_t c) {
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
    }
    for (size_t i = 0; i < sizeof newer / sizeof newer[0]; ++i) {
        if (c < newer[i].first || c > newer[i].last) continue;
        char major = newer[i].category[0], minor = newer[i].category[1];
        if (major == 'L' || major == 'M' || (major == 'N' && minor != 'o') || (major == 'P' && minor == 'c'))
            return true;
    }
    /* Join controls, and the enclosed letters: symbols that are Alphabetic. */
    return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
           (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
}

/* Decimal digits of Unicode 17: the reference's Digits looks numbers up in newer tables than its patterns do. */
static const char digits_newer[] = "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}";

rq_status rq_tok_class_extra(rq_tok_buf *out, const char *name, size_t name_len) {
    if (name_len == 6 && memcmp(name, "Digits", 6) == 0) {
        rq_status status = rq_tok_buf_add_str(out, digits_newer);
        if (status != RQ_OK) return status;
        name_len = 1;
        name = "N";
    }
    for (size_t i = 0; i < sizeof newer / sizeof newer[0]; ++i) {
        if (memcmp(newer[i].category, name, name_len) != 0) continue;
        char text[40];
        (void)snprintf(text, sizeof text, "\\x{%x}-\\x{%x}", (unsigned)newer[i].first, (unsigned)newer[i].last);
        rq_status status = rq_tok_buf_add_str(out, text);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

/* ---- NFC ---- */

/* Marks and compositions younger than the reference's tables: it takes each as a letter that nothing combines with, so
 * normalization stops before and starts again after it. Sorted. */
static const uint32_t unknown_to_nfc[][2] = {
    {0x07fd, 0x07fd},   {0x0898, 0x089f},   {0x08ca, 0x08d3},   {0x09fe, 0x09fe},   {0x0c3c, 0x0c3c},
    {0x0d3b, 0x0d3c},   {0x0eba, 0x0eba},   {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
    {0xa82c, 0xa82c},   {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
    {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943},
    {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42},
    {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f},
    {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
};

static bool is_unknown_to_nfc(uint32_t c) {
    if (c < unknown_to_nfc[0][0]) return false;
    size_t lo = 0, hi = sizeof unknown_to_nfc / sizeof unknown_to_nfc[0];
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (c > unknown_to_nfc[mid][1]) {
            lo = mid + 1;
        } else if (c < unknown_to_nfc[mid][0]) {
            hi = mid;
        } else {
            return true;
        }
    }
    return false;
}

static rq_status nfc_part(rq_tok_buf *out, const char *text, int64_t n, bool has_marks) {
    if (!has_marks) return rq_tok_buf_add(out, text, n);
    utf8proc_uint8_t *made = NULL;
    utf8proc_ssize_t len =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &made, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (len < 0) return rq_fail(RQ_ERR_NOMEM, "NFC of %lld bytes: %s", (long long)n, utf8proc_errmsg(len));
    rq_status status = rq_tok_buf_add(out, (const char *)made, (int64_t)len);
    free(made);
    return status;
}

rq_status rq_tok_nfc(rq_tok_buf *out, const char *text, int64_t n) {
    int64_t start = 0;
    bool has_marks = false; /* below U+0300 every text is NFC already */
    for (int64_t i = 0; i < n;) {
        int len;
        uint32_t c = rq_tok_char_at(text + i, &len);
        if (c >= 0x300) {
            if (is_unknown_to_nfc(c)) {
                rq_status status = nfc_part(out, text + start, i - start, has_marks);
                if (status == RQ_OK) status = rq_tok_buf_add(out, text + i, len);
                if (status != RQ_OK) return status;
                start = i + len;
                has_marks = false;
            } else {
                has_marks = true;
            }
        }
        i += len;
    }
    return nfc_part(out, text + start, n - start, has_marks);
}

/* ---- byte letters ---- */

/* GPT-2 writes a byte as itself where Latin-1 has a visible character there, else as U+0100 + (how many such bytes came
 * before): 0..32 -> 256..288, 127..160 -> 289..322, 173 -> 323. */
uint32_t rq_tok_byte_char(unsigned byte) {
    if (byte <= 32) return 256 + byte;
    if (byte >= 127 && byte <= 160) return 289 + (byte - 127);
    if (byte == 173) return 323;
    return byte;
}

int rq_tok_char_byte(uint32_t c) {
    if (c >= 256) return c <= 288 ? (int)(c - 256) : c <= 322 ? (int)(c - 289 + 127) : c == 323 ? 173 : -1;
    return rq_tok_byte_char(c) == c ? (int)c : -1;
}
