/* The least that the file contract could cost: write the request, spawn the program, wait, read the result. No sandbox,
 * no network, no record.
 *
 *   bare REQUEST RESULT PROGRAM [ARGUMENT...]
 *
 * Each line of standard input is an order, and ends with one line `done N`:
 *   calls N PAUSE_US      N calls one after the other with a pause before each; a line of nanoseconds for each
 *   seconds MS THREADS    as many calls as go into so many milliseconds on so many threads; N is their number
 * Thread 0 uses the two files as they are named, thread i appends `.i`; of the arguments, `{request}` and `{result}`
 * stand for them. It ends with its standard input. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 64, MAX_ARGUMENTS = 30, MAX_CALLS = 1000000 };

extern char **environ;

static const char request_body[] =
    "{\"body\":{\"name\":\"Ada\"},\"query\":{},\"headers\":{},\"method\":\"POST\",\"path\":\"/\",\"invocation_id\":\"0\"}";

struct place {
    char request[512], result[512];
    char *arguments[MAX_ARGUMENTS + 1];
    long long until, calls;
};

static char **given;

static void fail(const char *what) {
    fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void put(const char *path, const char *text, size_t length) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (file < 0 || write(file, text, length) != (ssize_t)length) fail(path);
    close(file);
}

static void settle(struct place *place, int thread) {
    char suffix[16] = "";
    if (thread > 0) snprintf(suffix, sizeof suffix, ".%d", thread);
    snprintf(place->request, sizeof place->request, "%s%s", given[1], suffix);
    snprintf(place->result, sizeof place->result, "%s%s", given[2], suffix);
    int count = 0;
    for (char **one = given + 3; *one && count < MAX_ARGUMENTS; one++) {
        char *word = *one;
        if (strcmp(word, "{request}") == 0) word = place->request;
        if (strcmp(word, "{result}") == 0) word = place->result;
        place->arguments[count++] = word;
    }
    place->arguments[count] = NULL;
}

static void call(struct place *place) {
    char result[4096];
    int status;
    pid_t child;
    put(place->request, request_body, sizeof request_body - 1);
    put(place->result, "", 0);
    errno = posix_spawnp(&child, place->arguments[0], NULL, NULL, place->arguments, environ);
    if (errno != 0) fail(place->arguments[0]);
    if (waitpid(child, &status, 0) != child) fail("waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("the program failed");
    int file = open(place->result, O_RDONLY);
    ssize_t length = file < 0 ? -1 : read(file, result, sizeof result);
    if (length < 1 || result[0] != '{') fail(place->result);
    close(file);
}

static void *run(void *argument) {
    struct place *place = argument;
    while (now() < place->until) {
        call(place);
        place->calls++;
    }
    return NULL;
}

static void one_by_one(long count, long pause_us) {
    static long long times[MAX_CALLS];
    static struct place place;
    struct timespec pause = {pause_us / 1000000, pause_us % 1000000 * 1000};
    settle(&place, 0);
    for (long i = 0; i < count; i++) {
        if (pause_us > 0) nanosleep(&pause, NULL);
        long long start = now();
        call(&place);
        times[i] = now() - start;
    }
    for (long i = 0; i < count; i++) printf("%lld\n", times[i]);
    printf("done %ld\n", count);
}

static void all_at_once(long milliseconds, long threads) {
    static struct place places[MAX_THREADS];
    pthread_t started[MAX_THREADS];
    long long until = now() + milliseconds * 1000000LL, calls = 0;
    for (long i = 0; i < threads; i++) {
        settle(&places[i], (int)i);
        places[i].until = until;
        places[i].calls = 0;
        if (pthread_create(&started[i], NULL, run, &places[i]) != 0) fail("a thread");
    }
    for (long i = 0; i < threads; i++) {
        pthread_join(started[i], NULL);
        calls += places[i].calls;
    }
    printf("done %lld\n", calls);
}

int main(int argc, char **argv) {
    char line[128];
    long first, second;
    if (argc < 4) return 64;
    given = argv;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "calls %ld %ld", &first, &second) == 2 && first > 0 && first <= MAX_CALLS) {
            one_by_one(first, second);
        } else if (sscanf(line, "seconds %ld %ld", &first, &second) == 2 && second > 0 && second <= MAX_THREADS) {
            all_at_once(first, second);
        } else {
            return 64;
        }
        fflush(stdout);
    }
    return 0;
}
