import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.JsonByteArray;
import io.debezium.engine.format.KeyValueHeaderChangeEventFormat;
import java.io.Reader;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Debezium's asynchronous engine, writing to Kafka: what it takes from the database it sends to the topics that
 * Debezium names, and marks as processed when Kafka has acknowledged it, batch by batch, as Debezium Server does.
 *
 * <p>One argument: a properties file with Debezium's settings; those that begin with "producer." are Kafka's. Lines on
 * standard output: "polling", "sent N" about once a second, "stopped N". Ends on SIGTERM; with exit code 1 when the
 * connector failed.
 */
public final class PeerEngine implements DebeziumEngine.ChangeConsumer<ChangeEvent<byte[], byte[]>> {
    private static final String PRODUCER = "producer.";

    private final KafkaProducer<byte[], byte[]> producer;
    private final AtomicReference<Exception> refused = new AtomicReference<>();
    private long sent;
    private long saidAt = System.nanoTime();

    private PeerEngine(Properties producerSettings) {
        producer = new KafkaProducer<>(producerSettings, new ByteArraySerializer(), new ByteArraySerializer());
    }

    public static void main(String[] arguments) throws Exception {
        Properties settings = new Properties();
        try (Reader reader = Files.newBufferedReader(Path.of(arguments[0]))) {
            settings.load(reader);
        }
        Properties producerSettings = new Properties();
        for (String name : settings.stringPropertyNames()) {
            if (name.startsWith(PRODUCER)) {
                producerSettings.setProperty(name.substring(PRODUCER.length()), settings.getProperty(name));
                settings.remove(name);
            }
        }
        new PeerEngine(producerSettings).run(settings);
    }

    private void run(Properties settings) throws Exception {
        AtomicReference<Throwable> failure = new AtomicReference<>();
        DebeziumEngine<ChangeEvent<byte[], byte[]>> engine =
                DebeziumEngine.create(
                                KeyValueHeaderChangeEventFormat.of(
                                        JsonByteArray.class, JsonByteArray.class, JsonByteArray.class))
                        .using(settings)
                        .using(new Started())
                        .using(
                                (success, message, error) -> {
                                    if (!success) {
                                        System.err.println(message);
                                        failure.set(error == null ? new IllegalStateException(message) : error);
                                    }
                                })
                        .notifying(this)
                        .build();
        Thread main = Thread.currentThread();
        Runtime.getRuntime()
                .addShutdownHook(
                        new Thread(
                                () -> {
                                    try {
                                        engine.close();
                                        main.join(TimeUnit.SECONDS.toMillis(30));
                                    } catch (Exception error) {
                                        System.err.println("while stopping: " + error);
                                    }
                                }));
        engine.run();
        producer.close();
        say("stopped " + sent);
        if (failure.get() != null) {
            failure.get().printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    @Override
    public void handleBatch(
            List<ChangeEvent<byte[], byte[]>> events,
            DebeziumEngine.RecordCommitter<ChangeEvent<byte[], byte[]>> committer)
            throws InterruptedException {
        for (ChangeEvent<byte[], byte[]> event : events) {
            producer.send(
                    new ProducerRecord<>(event.destination(), event.partition(), event.key(), event.value()),
                    (metadata, error) -> {
                        if (error != null) {
                            refused.compareAndSet(null, error);
                        }
                    });
        }
        producer.flush();
        if (refused.get() != null) {
            throw new IllegalStateException("Kafka refused a record", refused.get());
        }
        for (ChangeEvent<byte[], byte[]> event : events) {
            committer.markProcessed(event);
        }
        committer.markBatchFinished();
        sent += events.size();
        if (System.nanoTime() - saidAt > TimeUnit.SECONDS.toNanos(1)) {
            saidAt = System.nanoTime();
            say("sent " + sent);
        }
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    /** Says when the connector streams, with the milliseconds since the process began. */
    private static final class Started implements DebeziumEngine.ConnectorCallback {
        @Override
        public void pollingStarted() {
            long began = ManagementFactory.getRuntimeMXBean().getStartTime();
            say("polling after " + (System.currentTimeMillis() - began) + " ms");
        }
    }
}
