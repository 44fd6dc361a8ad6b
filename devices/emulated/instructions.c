/* Counts the instructions that each thread of an emulated program executes (QEMU TCG plugin, interface version 1).
 *
 * The program asks by a system call of its own, number MARK, which Linux does not know and answers with ENOSYS: its
 * first argument is a file descriptor, and this plugin writes two native uint64 there, the instructions so far of the
 * thread that asks and of all threads. Compiled by `toolchain devices setup`; bench/instructions.py is the other side.
 *
 * A block of code is counted when it is entered. One that an exception leaves early counts whole, which happens at
 * page faults of the program's own making and nowhere in steady work.
 */
#include "qemu_plugin.h"

#include <unistd.h>

#define MARK 7220
#define THREADS 1024

EXPORT int qemu_plugin_version = 1;

static uint64_t counts[THREADS];

static void entered(unsigned int vcpu, void *instructions)
{
    counts[vcpu % THREADS] += (uintptr_t)instructions;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, entered, QEMU_PLUGIN_CB_NO_REGS, (void *)qemu_plugin_tb_n_insns(tb));
}

static void called(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t fd, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK) {
        return;
    }
    uint64_t found[2] = {counts[vcpu % THREADS], 0};
    for (int thread = 0; thread < THREADS; thread++) {
        found[1] += counts[thread];
    }
    if (write((int)fd, found, sizeof found) != sizeof found) {
        return; /* the program reads nothing and says so */
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
