/*
 * A disk that keeps only synced data: this library is loaded by LD_PRELOAD and keeps a shadow copy of one folder.
 *
 * POWER_FOLDER   the folder to copy
 * POWER_SHADOW   where the shadow is kept; if it is empty at the start, everything in the folder counts as synced
 * POWER_IGNORE   the name of a file whose syncs have no effect (optional)
 *
 * The model is that of POSIX, which guarantees less than ext4: fsync or fdatasync of a file makes its bytes and its
 * length durable and nothing else; fsync of a folder makes its names durable. On ext4 the sync of a file also makes all
 * earlier changes of names durable; Docket must not depend on that. A file that is named in a synced folder but was
 * never synced itself is empty. Writes through a memory mapping are not durable: SQLite uses them only for its -shm
 * files, which are left out.
 *
 * The shadow: `files/ID` contains the bytes of a file at its last sync, `folders/ID` the names of a folder at its last
 * sync, one per line: `f MODE ID NAME` or `d MODE ID NAME`. An ID consists of inode and time of birth, so it is unique.
 * Syncs do not reach the real disk: the process is killed, not the machine.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

/* With more changed ranges than this, they are merged into one. */
#define STRETCHES_MAX 65536
/* A file up to this size is copied whole. */
#define SMALL (64 * 1024)

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

struct stretch {
    off_t start, end;
};

/* A file of the folder, identified by its inode and time of birth. */
struct file {
    char id[64];
    int ignored;
    /* The smallest length since the last sync: the bytes after it were cut off. */
    off_t shortest;
    struct stretch *changed;
    size_t count, room;
    struct file *next;
};

static char folder[PATH_MAX], shadow[PATH_MAX];
static const char *ignore;
static struct file *files;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *what) {
    fprintf(stderr, "power: %s: %s\n", what, strerror(errno));
    abort();
}

static int identify(int at, const char *name, int flags, struct statx *status, char id[64]) {
    if (statx(at, name, flags | AT_STATX_DONT_SYNC, STATX_BASIC_STATS | STATX_BTIME, status)) return -1;
    if (!(status->stx_mask & STATX_BTIME)) {
        errno = ENOTSUP;
        fail("the file system does not store the time of birth");
    }
    snprintf(id, 64, "%llu-%lld-%u", (unsigned long long)status->stx_ino, (long long)status->stx_btime.tv_sec,
             status->stx_btime.tv_nsec);
    return 0;
}

static void in_shadow(char path[PATH_MAX + 128], const char *kind, const char *id) {
    snprintf(path, PATH_MAX + 128, "%s/%s/%s", shadow, kind, id);
}

/* Whether a path is the folder or in it; `rest` is set to the part after the folder's path. */
static int is_in_folder(const char *path, const char **rest) {
    size_t length = strlen(folder);
    if (!length || strncmp(path, folder, length) || (path[length] && path[length] != '/')) return 0;
    *rest = path + length;
    return 1;
}

/* Copies a range of one file to the same range of another. */
static void copy(int from, int to, off_t start, off_t end) {
    REAL(pwrite64);
    static char buffer[1 << 20];
    while (start < end) {
        size_t want = (size_t)(end - start) < sizeof buffer ? (size_t)(end - start) : sizeof buffer;
        ssize_t got = pread64(from, buffer, want, start);
        if (got < 0) fail("reading");
        if (!got) return;
        if (real(to, buffer, (size_t)got, start) != got) fail("writing the shadow");
        start += got;
    }
}

/* Writes the current names of a folder. The list is replaced atomically: a kill leaves the old or the new one. */
static void sync_folder(int at, const char *id) {
    char path[PATH_MAX + 128], staged[PATH_MAX + 136];
    in_shadow(path, "folders", id);
    snprintf(staged, sizeof staged, "%s.new", path);
    FILE *list = fopen(staged, "we");
    if (!list) fail(staged);
    int again = openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = again < 0 ? NULL : fdopendir(again);
    if (!names) fail("reading the folder");
    for (struct dirent *entry; (entry = readdir(names));) {
        const char *name = entry->d_name;
        size_t length = strlen(name);
        struct statx status;
        char of[64];
        if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
        if (length > 4 && !strcmp(name + length - 4, "-shm")) continue;
        /* The entry may have been removed in the meantime. */
        if (identify(dirfd(names), name, AT_SYMLINK_NOFOLLOW, &status, of)) continue;
        if (S_ISREG(status.stx_mode) || S_ISDIR(status.stx_mode))
            fprintf(list, "%c %o %s %s\n", S_ISDIR(status.stx_mode) ? 'd' : 'f', status.stx_mode & 07777, of, name);
    }
    closedir(names);
    if (fclose(list) || rename(staged, path)) fail(path);
}

/* Counts everything below a folder as synced. Its own names come last: the shadow is complete once it has those of
   POWER_FOLDER. */
static void sync_all(const char *from) {
    struct statx status;
    char id[64], path[PATH_MAX + 128];
    int at = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = at < 0 ? NULL : fdopendir(at);
    if (!names) fail(from);
    for (struct dirent *entry; (entry = readdir(names));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (identify(dirfd(names), entry->d_name, AT_SYMLINK_NOFOLLOW, &status, id)) continue;
        if (S_ISDIR(status.stx_mode)) {
            char below[PATH_MAX + 300];
            snprintf(below, sizeof below, "%s/%s", from, entry->d_name);
            sync_all(below);
        } else if (S_ISREG(status.stx_mode)) {
            in_shadow(path, "files", id);
            int in = openat(dirfd(names), entry->d_name, O_RDONLY | O_CLOEXEC);
            int out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
            if (in < 0 || out < 0) fail(path);
            copy(in, out, 0, (off_t)status.stx_size);
            close(in);
            close(out);
        }
    }
    if (identify(at, "", AT_EMPTY_PATH, &status, id)) fail(from);
    sync_folder(at, id);
    closedir(names);
}

__attribute__((constructor)) static void begin(void) {
    const char *from = getenv("POWER_FOLDER"), *to = getenv("POWER_SHADOW");
    if (!from || !to || !realpath(from, folder) || !realpath(to, shadow)) fail("POWER_FOLDER and POWER_SHADOW");
    ignore = getenv("POWER_IGNORE");
    char path[PATH_MAX + 128], id[64];
    in_shadow(path, "files", "");
    mkdir(path, 0700);
    in_shadow(path, "folders", "");
    mkdir(path, 0700);
    struct statx status;
    if (identify(AT_FDCWD, folder, 0, &status, id)) fail(folder);
    in_shadow(path, "folders", id);
    if (access(path, F_OK)) sync_all(folder);
}

/* Returns the file of a descriptor, if it is in the folder. The caller holds the lock. */
static struct file *find(int fd, struct statx *status) {
    char id[64], link[64], path[PATH_MAX];
    if (!folder[0] || statx(fd, "", AT_EMPTY_PATH, STATX_TYPE, status) || !S_ISREG(status->stx_mode)) return NULL;
    if (identify(fd, "", AT_EMPTY_PATH, status, id)) return NULL;
    for (struct file *file = files; file; file = file->next)
        if (!strcmp(file->id, id)) return file;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    const char *rest;
    if (length < 0) return NULL;
    path[length] = 0;
    if (!is_in_folder(path, &rest)) return NULL;
    struct file *file = calloc(1, sizeof *file);
    if (!file) fail("out of memory");
    strcpy(file->id, id);
    const char *name = strrchr(path, '/') + 1;
    file->ignored = ignore && !strcmp(name, ignore);
    file->shortest = LLONG_MAX;
    file->next = files;
    files = file;
    return file;
}

static void change(struct file *file, off_t start, off_t end) {
    if (file->count) {
        struct stretch *last = &file->changed[file->count - 1];
        if (start <= last->end && end >= last->start) {
            if (start < last->start) last->start = start;
            if (end > last->end) last->end = end;
            return;
        }
    }
    if (file->count == STRETCHES_MAX) {
        struct stretch all = {start, end};
        for (size_t at = 0; at < file->count; at++) {
            if (file->changed[at].start < all.start) all.start = file->changed[at].start;
            if (file->changed[at].end > all.end) all.end = file->changed[at].end;
        }
        file->changed[0] = all;
        file->count = 1;
        return;
    }
    if (file->count == file->room) {
        file->room = file->room ? 2 * file->room : 16;
        file->changed = realloc(file->changed, file->room * sizeof *file->changed);
        if (!file->changed) fail("out of memory");
    }
    file->changed[file->count++] = (struct stretch){start, end};
}

/* Records that `count` bytes were written at offset `at`, or just before the file offset if `at` is negative. */
static void written(int fd, ssize_t count, off_t at) {
    if (count <= 0) return;
    int kept = errno;
    struct statx status;
    pthread_mutex_lock(&lock);
    struct file *file = find(fd, &status);
    if (file) {
        if (at < 0) at = lseek(fd, 0, SEEK_CUR) - count;
        change(file, at < 0 ? 0 : at, at < 0 ? (off_t)status.stx_size : at + count);
    }
    pthread_mutex_unlock(&lock);
    errno = kept;
}

static void shortened(int fd, off_t length) {
    int kept = errno;
    struct statx status;
    pthread_mutex_lock(&lock);
    struct file *file = find(fd, &status);
    if (file && length < file->shortest) file->shortest = length;
    pthread_mutex_unlock(&lock);
    errno = kept;
}

/* Updates the shadow of a file or a folder; returns 0 if the descriptor is not in the watched folder. */
static int synced(int fd) {
    int kept = errno, ours = 0;
    struct statx status;
    char path[PATH_MAX + 128];
    pthread_mutex_lock(&lock);
    struct file *file = find(fd, &status);
    if (file) {
        ours = 1;
        if (!file->ignored) {
            in_shadow(path, "files", file->id);
            int to = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
            /* Closing a second descriptor would release the locks of the process on the file, so one is opened
               only where the first one cannot read. */
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            int is_blind = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY;
            int from = is_blind ? open(link, O_RDONLY | O_CLOEXEC) : fd;
            if (to < 0 || from < 0) fail(path);
            REAL(ftruncate64);
            struct stat before;
            if (fstat(to, &before)) fail(path);
            if (file->shortest < before.st_size && real(to, file->shortest)) fail(path);
            if (status.stx_size <= SMALL) {
                copy(from, to, 0, (off_t)status.stx_size);
            } else {
                for (size_t at = 0; at < file->count; at++) copy(from, to, file->changed[at].start, file->changed[at].end);
            }
            if (real(to, (off_t)status.stx_size)) fail(path);
            file->count = 0;
            file->shortest = LLONG_MAX;
            if (is_blind) close(from);
            close(to);
        }
    } else {
        char link[64], at[PATH_MAX], id[64];
        const char *rest;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, at, sizeof at - 1);
        if (length > 0) {
            at[length] = 0;
            if (is_in_folder(at, &rest) && !identify(fd, "", AT_EMPTY_PATH, &status, id) && S_ISDIR(status.stx_mode)) {
                ours = 1;
                sync_folder(fd, id);
            }
        }
    }
    pthread_mutex_unlock(&lock);
    errno = kept;
    return ours;
}

#define SYNC(name, arguments, call) \
    int name arguments { \
        REAL(name); \
        return synced(fd) ? 0 : call; \
    }
SYNC(fsync, (int fd), real(fd))
SYNC(fdatasync, (int fd), real(fd))

/* This call does not make data durable, so it is passed on. */
int sync_file_range(int fd, off64_t offset, off64_t count, unsigned int flags) {
    REAL(sync_file_range);
    return real(fd, offset, count, flags);
}

#define WRITE(name, arguments, call, place) \
    ssize_t name arguments { \
        REAL(name); \
        ssize_t count = call; \
        written(fd, count, place); \
        return count; \
    }
WRITE(write, (int fd, const void *bytes, size_t size), real(fd, bytes, size), -1)
WRITE(writev, (int fd, const struct iovec *parts, int number), real(fd, parts, number), -1)
WRITE(pwrite, (int fd, const void *bytes, size_t size, off_t at), real(fd, bytes, size, at), at)
WRITE(pwrite64, (int fd, const void *bytes, size_t size, off64_t at), real(fd, bytes, size, at), at)
WRITE(pwritev, (int fd, const struct iovec *parts, int number, off_t at), real(fd, parts, number, at), at)
WRITE(pwritev64, (int fd, const struct iovec *parts, int number, off64_t at), real(fd, parts, number, at), at)

ssize_t sendfile(int fd, int from, off_t *at, size_t size) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "sendfile");
    ssize_t count = real(fd, from, at, size);
    written(fd, count, -1);
    return count;
}

ssize_t sendfile64(int fd, int from, off64_t *at, size_t size) {
    return sendfile(fd, from, at, size);
}

ssize_t copy_file_range(int from, off64_t *read_at, int fd, off64_t *at, size_t size, unsigned int flags) {
    REAL(copy_file_range);
    ssize_t count = real(from, read_at, fd, at, size, flags);
    written(fd, count, at && count > 0 ? *at - count : -1);
    return count;
}

#define SHORTEN(name, type) \
    int name(int fd, type length) { \
        REAL(name); \
        int answer = real(fd, length); \
        if (!answer) shortened(fd, length); \
        return answer; \
    }
SHORTEN(ftruncate, off_t)
SHORTEN(ftruncate64, off64_t)

static int opened(int fd, int flags) {
    if (fd >= 0 && (flags & O_TRUNC)) shortened(fd, 0);
    return fd;
}

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags, mode) \
        return opened(real(path, flags, mode), flags); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags, mode) \
        return opened(real(at, path, flags, mode), flags); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) {
    return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
