/* SPDX-License-Identifier: Apache-2.0 */
/* Folders that are made aside and renamed when they are complete, and what is copied into them. */
#ifndef RQ_FOLDER_H
#define RQ_FOLDER_H

#include "common.h"

bool rq_folder_is(const char *path);
/* Whether something is in it, but for a file of the name `but` (or NULL). What is there and no folder is in use too. */
bool rq_folder_is_used(const char *path, const char *but);
/* A folder of plain files and of such folders: what we made ourselves. */
void rq_folder_remove(const char *path);
/* One file of a folder to another one, under its name; folders in it are left out with a warning. */
rq_status rq_folder_copy_file(const char *from_dir, const char *to_dir, const char *name);
/* All its files but those that skip says. */
rq_status rq_folder_copy(const char *from, const char *to, bool (*skip)(const char *name));

#endif
