// A plugin of QEMU that counts the instructions a program executes, by their mnemonic. The functions of QEMU that it
// uses are declared here, because Debian has no package with their header.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, int add, void *counter, uint64_t amount);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*translated)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(plugin_id id, void (*ended)(plugin_id, void *), void *data);

// The version of the interface above.
int qemu_plugin_version = 1;

enum { KINDS = 4096, LENGTH = 24, ADD = 0 };
static struct {
	char mnemonic[LENGTH];
	uint64_t count;
} kinds[KINDS];
static int known;

static uint64_t *counter(const char *mnemonic)
{
	for (int i = 0; i < known; i++)
		if (!strcmp(kinds[i].mnemonic, mnemonic))
			return &kinds[i].count;
	if (known == KINDS)
		abort();
	snprintf(kinds[known].mnemonic, LENGTH, "%s", mnemonic);
	return &kinds[known++].count;
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb)
{
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		char *text = qemu_plugin_insn_disas(insn), mnemonic[LENGTH] = "?";
		if (text)
			sscanf(text, "%23s", mnemonic);
		free(text);
		qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD, counter(mnemonic), 1);
	}
}

// "count mnemonic", a line each, into the file that the argument `out=` names.
static void ended(plugin_id id, void *path)
{
	FILE *out = fopen(path, "w");
	if (!out)
		abort();
	for (int i = 0; i < known; i++)
		fprintf(out, "%llu %s\n", (unsigned long long)kinds[i].count, kinds[i].mnemonic);
	fclose(out);
}

int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments)
{
	if (count != 1 || strncmp(arguments[0], "out=", 4))
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, ended, strdup(arguments[0] + 4));
	return 0;
}
